"""What does brook read? Stories, facts and conversations from one small valley, made by a seeded grammar.

Three parts, in this order: the world (tables of people, animals, places, things), the plots, and the makers that turn
both into documents. The text of the tables is the source; everything in it is our own.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

Role = Literal["text", "system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One piece of a document: a chat message, or plain text when the role is "text"."""

    role: Role
    text: str


Document = tuple[Turn, ...]

# ---------------------------------------------------------------------------------------------------------------- world
# name | pronoun | job | place | tool | trait | likes | makes or does
_VILLAGERS = """
Mara | she | miller | mill | grain sack | patient | the sound of the wheel | grinds the grain into flour
Tobin | he | ferryman | ferry | long oar | cheerful | old songs | rows people across the river
Elsie | she | baker | bakery | wooden spoon | warm | the smell of new bread | bakes bread before the sun is up
Garrick | he | smith | smithy | heavy hammer | strong | the glow of hot iron | makes nails, hinges and horseshoes
Ottilie | she | teacher | school | piece of chalk | clever | good questions | teaches the children to read and count
Hale | he | fisherman | boathouse | green net | quiet | misty mornings | catches trout and mends nets
Bettina | she | beekeeper | beehives | straw hat | gentle | clover in bloom | looks after the bees and sells honey
Jory | he | shepherd | hill | crooked staff | calm | a wide view | keeps forty sheep on the hill
Nell | she | innkeeper | inn | brass key | kind | a full table | cooks soup for tired travellers
Corbin | he | carpenter | workshop | sharp saw | careful | the smell of pine | builds boats, doors and tables
Isolde | she | weaver | weaving house | oak loom | thoughtful | bright colours | weaves cloth and blankets
Pascoe | he | bell ringer | bell tower | thick rope | punctual | the view from the top | rings the bell at noon and at dusk
Linnet | she | gardener | garden | small spade | merry | rain in the night | grows beans, onions and roses
Oswin | he | potter | pottery | round wheel | dreamy | cool wet clay | makes bowls, cups and jugs
Hester | she | healer | herb cottage | little silver knife | wise | the smell of mint | makes tea and balm for the sick
Dunstan | he | woodcutter | forest | bright axe | honest | the quiet of tall trees | cuts firewood for the winter
Verity | she | letter carrier | post house | leather bag | quick | long walks | carries letters up and down the valley
Alaric | he | orchard keeper | orchard | tall ladder | generous | ripe pears | picks apples and plants young trees
Sunniva | she | fiddler | market | red fiddle | lively | dancing feet | plays the fiddle at every feast
Barnaby | he | candle maker | candle shop | copper pot | shy | soft light | dips candles and fills lanterns
Rowena | she | lock keeper | lock | iron crank | watchful | slow boats | opens the gates for the boats
Cuthbert | he | goatherd | meadow | tin whistle | stubborn | cheese with bread | milks the goats and makes cheese
Agnes | she | tailor | tailor shop | fine needle | tidy | silk ribbons | sews coats and mends trousers
Fergus | he | ferry boy | ferry | coiled rope | eager | stories about the sea | ties the boat and sweeps the deck
"""

# name | preposition | what it looks like | what you hear | six things found there | an extra fact
_PLACES = """
mill | at | a tall stone house with a big wooden wheel | the slow wheel and the splashing water | flour, sacks, a wheel,\
 a grindstone, mice, a ladder | The mill has stood beside the river for two hundred years
weir | by | a low wall of stones where the river falls in white foam | the roar of falling water | foam, wet stones, moss,\
 a heron, driftwood, trout | Salmon leap over the weir in autumn
river | by | a wide, slow, green river with willows on both banks | the water and the wind in the reeds | pebbles, reeds,\
 fish, ducks, shells, a dragonfly | The river is called the Wend, and it runs down to the sea
bridge | on | an old stone bridge with three arches | footsteps and cart wheels | moss, swallows, carved names, a lamp,\
 spiders, cold stones | Every child in the village has carved a name into the bridge
ferry | at | a flat boat on a long rope between two wooden landings | the creak of the rope | ropes, an oar, a bell,\
 puddles, baskets, a bench | The ferry is free for children and for geese
boathouse | at | a blue shed with its feet in the water | waves under the floor | nets, oars, hooks, tar, paint, an old boat\
 | The boathouse was painted blue with what was left of the church door's paint
bakery | at | a small yellow house with a smoking chimney | crackling crusts and the oven door | bread, buns, pies, flour,\
 butter, a rolling pin | The bakery opens when the first cock crows
market | at | a square full of stalls under striped cloth | voices, coins and carts | apples, cheese, eggs, ribbons, pots,\
 baskets | Market day is Saturday
inn | at | a long white house with green shutters | laughter and the clink of cups | soup, cups, chairs, a fire, a piano,\
 travellers | The inn is called the Sleeping Otter
smithy | at | a dark workshop with a red fire | the ring of the hammer | iron, nails, horseshoes, a hammer, coal, sparks\
 | The fire in the smithy has not gone out for seven years
school | at | a brick house with one big room and a small yard | children reading aloud | books, chalk, desks, maps, ink,\
 a globe | The school has nineteen children and one very old globe
bell tower | at | a narrow tower of grey stone with a copper roof | the deep bell | a bell, ropes, stairs, pigeons, dust,\
 a clock | There are ninety-nine steps in the bell tower
garden | in | a square of rich dark earth behind a low hedge | bees and the snip of scissors | beans, onions, roses,\
 a scarecrow, worms, a watering can | The scarecrow in the garden wears a coat from the tailor
orchard | in | rows of old apple and pear trees | wind in the leaves and falling fruit | apples, pears, ladders, bees,\
 wasps, baskets | The oldest tree in the orchard gives both red and yellow apples
meadow | in | a wide field of long grass and flowers | crickets and goat bells | daisies, clover, goats, butterflies,\
 crickets, hay | In June the meadow is full of poppies
beehives | by | nine white boxes in a row on the sunny side of the hedge | a deep and sleepy humming | bees, honey, wax,\
 clover, straw, smoke | Nobody shouts near the beehives
hill | on | a round green hill with one crooked pine on top | wind and far sheep bells | sheep, stones, heather, a pine,\
 hares, a bench | From the hill you can see the sea on a clear day
forest | in | a deep wood of oak, beech and birch | woodpeckers and dry leaves | mushrooms, acorns, ferns, feathers,\
 berries, foxes | The path through the forest is marked with white stones
pond | by | a small round pond with lilies | frogs and plopping stones | frogs, lilies, newts, ducks, mud, tadpoles\
 | The pond freezes first in winter, and everyone skates on it
cave | in | a cool hollow behind a curtain of ivy | drops of water and your own echo | bats, crystals, puddles, bones,\
 shadows, echoes | An echo in the cave comes back three times
well | at | a round well with a mossy roof | a bucket far below | a bucket, a chain, ferns, coins, cold water, a frog\
 | The water of the well is cold even in August
lock | at | two heavy black gates that hold the water back | chains and rushing water | chains, barges, a crank, ducks,\
 ropes, tulips | A boat needs ten minutes to pass the lock
pottery | at | a low house with a hundred pots in the window | the hum of the wheel | bowls, cups, clay, jugs, glaze, shelves\
 | The kiln of the pottery is lit on Mondays
workshop | at | a long shed full of planks | the saw and the plane | planks, shavings, saws, glue, pegs, a half-built boat\
 | The workshop smells of pine all year
weaving house | at | a bright house with wide windows | the clack of the loom | wool, yarn, a loom, blankets, dye, spindles\
 | The weaving house hangs its coloured wool out to dry on the fence
herb cottage | at | a tiny cottage under bunches of dry herbs | a kettle that is always singing | mint, sage, jars, balm,\
 kettles, a grey cat | The door of the herb cottage is never locked
post house | at | a narrow red house with a hundred small boxes | stamps going thump | letters, stamps, parcels, string,\
 wax, a scale | The post house has a box for every family
candle shop | at | a little shop with a golden window | dripping wax | candles, lanterns, wicks, wax, matches, honey cakes\
 | At night the window of the candle shop can be seen from the bridge
tailor shop | at | a neat shop with a paper bird in the window | scissors and soft humming | coats, buttons, thread, ribbons,\
 scissors, hats | The tailor shop keeps one thousand buttons in jars
"""

# kind | colour | sound | home | food | moves | adjectives | fact
_ANIMALS = """
fox | red | barks | a den under the roots | mice and berries | runs | sly, quick, hungry, young\
 | A fox can hear a mouse under the snow
heron | grey | croaks | a nest in a tall tree | fish and frogs | flies | tall, patient, proud, silent\
 | A heron can stand still for an hour
otter | brown | whistles | a hole in the river bank | fish | swims | playful, sleek, merry, clever\
 | An otter holds hands with its friends while it sleeps
owl | white | hoots | a hollow oak | mice | flies | wise, old, sleepy, solemn | An owl can turn its head almost all the way round
hedgehog | brown | snuffles | a heap of leaves | beetles and worms | walks | small, shy, prickly, careful\
 | A hedgehog rolls into a ball when it is afraid
goose | white | honks | a nest in the reeds | grass | flies | loud, bossy, brave, plump | A goose never forgets a road
frog | green | croaks | a lily pond | flies | jumps | little, cheerful, damp, boastful | A frog drinks through its skin
badger | black and white | grunts | a set under the hill | roots and worms | walks | grumpy, strong, slow, honest\
 | A badger cleans its house every spring
mouse | grey | squeaks | a hole in the wall | seeds and cheese | runs | tiny, timid, busy, curious\
 | A mouse can squeeze through a ring
hare | brown | is silent | a hollow in the grass | clover | runs | fast, proud, nervous, lively | A hare sleeps with open eyes
duck | brown | quacks | the reeds | water plants | swims | round, friendly, chatty, clumsy | A duck's feathers never get wet
crow | black | caws | the top of the pine | almost anything | flies | clever, sharp, lonely, bold | A crow remembers faces
magpie | black and white | chatters | a nest of sticks | seeds and crumbs | flies | greedy, shiny, cheeky, vain\
 | A magpie likes anything that shines
squirrel | red | chatters | a hole in the beech | nuts | climbs | busy, nimble, forgetful, cheerful\
 | A squirrel forgets half of the nuts that it hides
cat | grey | purrs | the herb cottage | fish and milk | climbs | lazy, soft, curious, elegant | A cat sleeps for most of the day
dog | brown | barks | a kennel by the inn | bones and bread | runs | loyal, shaggy, happy, brave | A dog can smell rain before it comes
goat | white | bleats | a shed in the meadow | grass, leaves and hats | climbs | stubborn, hungry, bearded, rude\
 | A goat will eat a hat if you let it
sheep | white | bleats | the hill | grass | walks | woolly, meek, sleepy, kind | A sheep knows the voice of its shepherd
donkey | grey | brays | a stable behind the mill | hay and carrots | walks | tired, stubborn, gentle, old\
 | The donkey carries flour to the bakery
swan | white | hisses | an island in the river | water plants | swims | graceful, proud, quiet, white\
 | A swan stays with one friend for its whole life
beaver | brown | slaps its tail | a lodge of sticks | bark | swims | hard-working, sturdy, serious, wet\
 | A beaver never stops building
robin | brown | sings | a nest in the hedge | worms and crumbs | flies | small, bright, bold, friendly\
 | A robin sings even in winter
snail | yellow | is silent | its own shell | lettuce | crawls | slow, patient, tiny, thoughtful | A snail carries its house on its back
turtle | green | is silent | the warm stones by the pond | water plants | swims | slow, ancient, calm, wise\
 | A turtle can live for a hundred years
bat | black | squeaks | the cave | moths | flies | small, shy, quick, gentle | A bat sleeps upside down
mole | black | is silent | a tunnel under the garden | worms | digs | blind, busy, soft, modest | A mole can dig all night long
trout | silver | is silent | deep water below the weir | flies | swims | silver, careful, quick, old\
 | A trout always swims against the stream
bee | gold | buzzes | the beehives | nectar | flies | busy, tiny, golden, brave | A bee dances to show the way to the flowers
kingfisher | blue | whistles | a tunnel in the bank | small fish | flies | bright, swift, shy, lucky\
 | A kingfisher is so quick that you only see a blue flash
pony | brown | neighs | a stable behind the inn | hay and apples | runs | small, round, willing, playful\
 | The pony pulls the cart on market day
"""

# noun | adjectives | what it is for | made of
_THINGS = """
lantern | old, brass, small, bright | giving light in the dark | brass and glass
key | rusty, little, silver, strange | opening a door | iron
kite | red, torn, paper, striped | flying on a windy day | paper and string
boat | little, leaky, blue, wooden | crossing the river | wood
basket | round, heavy, willow, woven | carrying apples | willow
bell | silver, cracked, tiny, clear | calling people | bronze
book | thick, dusty, precious, green | reading | paper and leather
hat | straw, tall, felt, silly | keeping the sun off your face | felt
scarf | long, woollen, purple, warm | keeping your neck warm | wool
whistle | tin, shiny, shrill, wooden | calling a dog | tin
map | folded, faded, ancient, torn | finding the way | paper
button | golden, round, pearl, tiny | closing a coat | bone
coin | gold, worn, lucky, foreign | buying bread | gold
ring | thin, golden, simple, family | wearing on a finger | gold
spoon | wooden, silver, bent, favourite | stirring soup | wood
pot | clay, copper, dented, big | cooking soup | clay
drum | loud, painted, goatskin, small | making music | wood and skin
flute | wooden, slender, sweet, borrowed | making music | wood
fiddle | red, fine, dusty, borrowed | playing a dance | maple
umbrella | black, huge, broken, spotted | keeping off the rain | cloth
ladder | tall, wobbly, wooden, long | climbing a tree | wood
rope | strong, coiled, frayed, long | tying a boat | hemp
blanket | soft, patched, thick, striped | keeping warm at night | wool
candle | short, white, wax, crooked | giving light | wax
mirror | cracked, round, oval, polished | seeing your own face | glass
clock | slow, ticking, broken, wooden | telling the time | brass and wood
wheel | wooden, squeaky, spare, iron | moving a cart | wood
feather | white, blue, long, soft | writing a letter | nothing but feather
stone | smooth, round, speckled, warm | skipping over the water | stone
shell | pink, curved, sea, tiny | hearing the sea | shell
acorn | green, plump, perfect, tiny | growing an oak | oak
pie | apple, cherry, hot, sweet | eating with friends | flour and fruit
cake | honey, lopsided, plum, birthday | eating on a birthday | flour and honey
letter | sealed, secret, crumpled, long | sending news | paper
doll | rag, little, smiling, lost | playing | cloth
puppet | wooden, painted, dancing, funny | telling stories | wood
chair | rocking, broken, carved, comfortable | sitting | wood
coat | warm, patched, blue, heavy | keeping warm in winter | wool
boot | leather, muddy, left, sturdy | walking in mud | leather
net | fishing, tangled, green, wide | catching fish | string
hammer | heavy, borrowed, iron, good | driving nails | iron and ash wood
bucket | wooden, full, leaking, tin | fetching water | wood
compass | brass, tiny, trembling, old | finding north | brass
telescope | long, brass, splendid, dented | looking at the stars | brass and glass
jar | glass, sticky, tall, sealed | keeping honey | glass
sled | fast, painted, wooden, new | sliding down the hill | wood
cup | blue, chipped, china, favourite | drinking tea | clay
ball | leather, bouncing, red, lost | playing | leather
quilt | patchwork, cosy, faded, thick | sleeping under | cloth
bottle | green, empty, corked, tall | keeping a message dry | glass
"""

# adjective | three ways to say it at the start of a story | what it does | noun
_WEATHERS = """
windy | The wind was strong that day / All day the wind pulled at the trees / A sharp wind blew down the valley\
 | leaves flew over the road | the wind
rainy | It had been raining since dawn / Rain drummed on every roof / It was a wet, grey day | the path turned to mud | the rain
snowy | Snow had fallen in the night / The valley was white and still / Thick snow lay on the roofs\
 | every step left a deep print | the snow
sunny | The sun was shining on the water / It was a warm and golden day / Not a single cloud was in the sky\
 | the stones were warm under foot | the sunshine
foggy | A thick fog had come up from the river / It was so foggy that nobody could see the bridge\
 / The fog lay on the fields like milk | every sound seemed close and far at once | the fog
stormy | A storm was coming over the hill / Thunder rolled above the forest / Dark clouds gathered over the valley\
 | the branches cracked and swayed | the storm
frosty | Frost sparkled on the grass / It was so cold that breath turned to smoke / Ice had formed along the banks\
 | the puddles cracked like glass | the frost
misty | Mist hung over the water / The morning was pale and misty / A soft mist hid the far bank\
 | drops hung from every web | the mist
cloudy | Clouds drifted slowly over the hill / It was a mild and cloudy day / The sky was as grey as a pigeon\
 | the light was soft and even | the clouds
hot | It was the hottest day of the summer / The air shimmered above the road / The heat made everyone slow\
 | even the dogs stayed in the shade | the heat
"""

_CHILD_NAMES = """
she Ada Bryn Clementine Dahlia Edda Fern Greta Hazel Ida Juniper Kit Lottie Merle Nora Olive Poppy Quilla Rosa Saskia Tilly
she Una Viola Willa Yara Zelda Mabel Ivy Pearl Thea Nina
he Anselm Bram Caspar Dov Emil Finn Gus Hugo Ivo Jasper Knut Leo Milo Ned Otto Pip Quentin Rafe Sam Theo
he Ulf Victor Wilf Yann Zeno Arlo Benno Colin Edgar Felix
"""

_ANIMAL_NAMES = """
she Bramble Clover Dapple Ember Flick Ginger Hush Inkling Jessamy Lark Minnow Nutmeg Pebble Quickstep Ripple Sorrel Tansy
she Velvet Whisper Yarrow Mossy Pippa Luna Daisy Sable
he Acorn Bristle Copper Dusty Fennel Grumble Hopper Jumble Kestrel Log Mudge Nettle Oakley Puddle Rusty Scuttle Thistle
he Umber Wick Zigzag Burdock Flint Biscuit Rufus Snap
"""

_RULES_TEXT = """
oncetime: Once upon a time / Long ago / Many years ago / One day / A long time ago / Once / In the days of our grandparents
oneday: One day / One morning / One evening / Early one morning / One afternoon / On a quiet Sunday / On market day
 / Late one afternoon / One autumn morning / One day in spring / On the first day of summer / One winter evening
then: Then / After that / At last / Soon / A little later / After a while
season: spring / summer / autumn / winter
kindadj: kind / gentle / cheerful / curious / brave / quiet / young / old / lonely / clever / thoughtful / stubborn / merry
childadj: curious / brave / quiet / young / small / clever / dreamy / cheerful / stubborn / lonely / shy / freckled
saidsad: said sadly / sighed / whispered / said in a small voice / murmured / sobbed
saidglad: said happily / laughed / cried with joy / said with a smile / shouted / beamed
saidkind: said kindly / said gently / said softly / answered warmly / replied / said at once
looked: looked / searched / hunted / peered
walked: walked / hurried / ran / wandered / went / strolled / trudged
veryhappy: very happy / full of joy / so glad / as happy as a lark / proud and happy / delighted / overjoyed
verysad: very sad / close to tears / heartbroken / quiet and sad / so unhappy / downcast
verytired: very tired / worn out / sleepy / weary to the bone / exhausted
night: The stars came out above the valley / The moon rose over the river / Night fell softly over the village
 / The lamps were lit one by one / The sky turned violet and then black
home: went home / walked home together / went home under the first stars / went home for supper / set off for home
supper: hot soup and bread / apple cake and tea / roasted chestnuts / pancakes with honey / cheese and warm bread
 / baked pears / potato pie / mushroom stew / barley soup / oat biscuits and milk / plum dumplings / fried trout
food: bread / cheese / apples / honey cake / a warm bun / two pears / a bag of nuts / dried plums / an egg / a carrot
 / a slice of pie / a handful of berries / ginger biscuits / a boiled potato
end: And they were friends from that day on. / The whole village talked about it for a week.
 / Nobody in the valley ever forgot that day. / And that night everyone slept well. / And if you walk by the river, you may
 still hear about it. / It is still told at the inn on winter nights. / From then on, things were a little better in the valley.
 / After that, they met every Sunday. / And the river went on singing, as it always does.
colour: red / blue / green / yellow / white / black / brown / grey / purple / orange / silver / golden / pink
number: two / three / four / five / six / seven / eight / nine / ten / eleven / twelve
feelgood: proud / happy / brave / light / warm / calm / grateful / peaceful
hidplace: under the bridge / in the reeds / behind the mill / inside an old boot / in a magpie's nest / under a heap of leaves
 / at the bottom of the well / between two stones / in a hollow tree / under the ferry bench / on the roof of the inn
 / beside the beehives / in the hay / behind the bakery stove / under a cabbage leaf / in a rabbit hole
"""

# ---------------------------------------------------------------------------------------------------------------- plots
# "=" name and theme; "let" fixes a slot for the whole story; "ask" question > answer; "." a sentence, "?" one that may be
# left out, "-" a new paragraph. " / " parts the alternatives. A and B are the characters, T a thing, P a place, W weather.
_PLOTS_TEXT = """
= lost friendship
title {A} and the Lost {T} / The Lost {T} / Where Is the {T}?
let hid {hidplace}
sum {A} lost {A.his} {T}, and {B} helped {A.him} to find it {hid}. / {A} could not find {A.his} {T}. {B} helped, and they found it {hid}.
ask Who lost the {T}? > {A} lost the {T}. / It was {A}.
ask Where was the {T}? > It was {hid}. / They found it {hid}.
ask Who helped {A}? > {B} helped {A}. / It was {B}.
moral Two pairs of eyes see more than one. / A friend who looks with you makes the search short. / Nothing is lost while a friend is looking.
. {oncetime}, {A.intro} had {T.a}. / There was once {A.intro} who loved one thing above all: {T.a}. / {A.intro} owned {T.a} and took it everywhere.
. {W.s}, and {W.does}. / {W.s}. / {oneday}, {A} went out {P.at}. {W.s}.
. When {A.he} came home, the {T} was gone. / {A} reached for the {T}, but it was not there. / In the evening {A.he} saw that the {T} was missing.
? "I had it this morning," {A.he} {saidsad}. / "Where can it be?" {A.he} {saidsad}. / "Oh no," {A.he} {saidsad}. "My {T}!"
. {A} {looked} {P.at}, and {A.he} {looked} under the bed, but {A.he} found nothing. / {A.he} {looked} everywhere: in the kitchen, in the yard and even in the soup pot.
-
. {then} {A.he} met {B.intro}. / Just then {B.intro} came along the road. / {B.intro} saw {A.him} and stopped.
. "Why are you so sad?" asked {B}. / "What are you looking for?" {B} asked. / "Can I help you?" asked {B}.
. "I have lost my {T}," said {A}. / "My {T} is gone," {A} {saidsad}. / {A} told {B.him} everything.
. "Let us look together," {B} {saidkind}. / "Four eyes are better than two," {B} {saidkind}. / "Think," {B} {saidkind}. "Where did you sit down to rest?"
. They searched until the sun was low, and at last {B} saw something {hid}. / They went back along the path, step by step, and looked {hid}.
. It was the {T}! / There lay the {T}, a little dusty but not broken. / And there it was, the {T.adj} {T}.
-
. "Thank you," {A} {saidglad}. / {A} was {veryhappy} and thanked {B} three times. / {A} held the {T} tight and {saidglad}, "You are a true friend."
? That evening they shared {supper}. / {A} gave {B} {food} as thanks. / {night}, and they {home}.

= flood courage
title The Night of the Flood / How {A} Saved the Village / The Rising River
let bell the big bell / a horn / an old copper pan / a drum / the school bell
sum When the river rose in the night, {A} woke the village with {bell}, and everyone was saved. / {A} saw the flood coming and warned the village in time.
ask Who saved the village? > {A} saved the village. / It was {A}.
ask How did {A} wake the village? > {A.he.c} used {bell}. / With {bell}.
moral A small voice can save many if it speaks in time. / Courage means to act while your knees shake. / It is better to wake a friend than to lose one.
. {oncetime}, {A.intro} lived close to the river. / {A.intro} had a little house {P.at}, where the river runs fast.
. For three days it had rained, and the river grew brown and loud. / The snow on the hill had melted, and the water was rising. / A storm had filled every stream in the valley.
. In the middle of the night {A} woke up because {A.his} feet were wet. / One night {A} heard a strange sound and looked out of the window. / That night {A} could not sleep and went to look at the water.
. The river had climbed over its banks! / The water was already at the door. / The first garden was under water, and the rest would follow soon.
? "Everyone is asleep," thought {A}. "I must wake them." / {A} was afraid, but {A.he} knew what to do. / {A.his.c} heart beat fast.
. {A} ran through the dark and beat {bell} with all {A.his} strength. / {A.he.c} hurried through the rain, took {bell} and made such a noise that the windows shook.
-
. {B.intro} opened the door first. / The first to wake was {B.intro}. / "What is it?" called {B.intro}.
. "The river is coming!" cried {A}. / "Up to the hill!" {A} shouted. "The flood is here!"
. {B} carried the little ones, and the others took blankets and bread up the hill. / Then {B} woke the next house, and that house woke another, until all stood on the hill. / {B} brought a rope, and together they led everyone to high ground.
. From the hill they watched the water fill the street. / They waited there until the sun rose.
-
. In the morning the water went down, and nobody was hurt. / When the sun came out, they saw that not even a hen was missing. / Two fences were gone, but every one of them was safe.
. "You saved us," {B} said to {A}. / "Without you we would have lost everything," {B} {saidkind}. / Everyone thanked {A}, and {A.he} was {veryhappy}.
? For a week they dried their beds in the sun. / They built the wall by the river one stone higher. / That evening they ate {supper} on the hill.

= dark courage
title {A} and the Strange Noise / The Noise in the Night / Not a Ghost
let noise a loose shutter in the wind / a hedgehog who was eating from a tin plate / a branch that tapped on the window / an owl who was snoring / a frog in an empty bucket / a cat who was locked in the cellar
sum {A} was afraid of a noise in the night, but it was only {noise}. / {A} was frightened by a sound in the dark. With {B} {A.he} found out that it was only {noise}.
ask What was the noise? > It was only {noise}. / The noise was {noise}.
ask Who was afraid? > {A} was afraid. / It was {A}.
moral Most fears grow smaller when you carry a light to them. / Look at what scares you, and it may look back and blink. / The dark is only the day with its eyes closed.
. {A.intro} was afraid of the dark. / {oncetime}, {A.intro} did not like the night at all. / There was {A.intro} who slept with a candle by the bed, because {A.he} feared the dark.
. One night {A.he} heard a noise {P.at}. / {oneday}, when the sun was down, a strange sound came from outside. / At midnight something went tap, tap, tap.
. Tap, tap, it went. Then it was quiet. Then it came again. / It sounded like a ghost, or like a very large spider. / "It is a monster," {A} whispered, and {A.he} pulled the blanket over {A.his} head.
-
. {A} ran to {B.intro} next door. / In the next room slept {B.intro}, and {A} woke {B.him}. / {A} called for {A.his} friend, {B.intro}.
. "Did you hear that?" asked {A}. "I am frightened." / "There is something out there," {A} {saidsad}.
. "Then we will go and look," said {B}. / "A noise is only a noise," {B} {saidkind}. "Come, take the lantern." / "I am a little afraid too," said {B}. "But two are braver than one."
. They lit a lantern and went out, hand in hand. / With one lantern and very small steps they went to see. / {A} held the light, and {A.his} hand shook.
. The noise came closer and closer, and then they saw it. / They looked behind the door and lifted the light.
-
. It was only {noise}! / There was no ghost. It was {noise}. / "Look," {A} {saidglad}. "It is only {noise}!"
. They both laughed so much that the candle went out. / {A} laughed, and the dark did not seem so dark any more. / "And I thought it was a monster," said {A}.
? After that night {A} slept without a candle. / {A.he.c} was never so afraid again. / They went back to bed and slept until noon.

= greed sharing
title Too Many {fruit.c} / {A} and the {fruit.c} / One for You, One for Me
let fruit apples / pears / nuts / plums / cherries / berries / mushrooms / chestnuts
sum {A} wanted all the {fruit} and nearly lost them, and then {A.he} shared them with {B}. / {A} was greedy with the {fruit}. In the end {A.he} learned to share.
ask What did {A} find? > {A} found {fruit}. / {A.he.c} found {fruit}.
ask With whom did {A} share? > {A} shared with {B}. / With {B}.
moral What you share tastes twice as sweet. / Full hands cannot hold a friend's hand. / Half of a feast is better than a whole meal alone.
. {oneday}, {A.intro} found a heap of {fruit} {P.at}. / {A.intro} was walking {P.at} when {A.he} saw more {fruit} than {A.he} had ever seen. / {oncetime}, {A.intro} found a hidden place full of {fruit}.
. "All of them are mine," {A.he} said, and {A.he} filled {A.his} bag. / {A.he.c} looked left and right, and then {A.he} took every single one. / "I will not tell anyone," thought {A}.
. On the way {A.he} met {B.intro}. / Just then {B.intro} came by. {B.he.c} had eaten nothing all day.
. "May I have one?" asked {B}. "I am so hungry." / "What lovely {fruit}!" said {B}. "Could you give me a few?"
. "No," said {A}. "I found them, and I need them all." / "I am sorry," said {A}, who was not sorry at all. "There are only enough for me." / {A} shook {A.his} head and hurried away.
-
. But the bag was so heavy that it tore on the bridge. / But {A} could not see over the bag, and {A.he} stumbled over a root. / Soon {A.his} arms hurt, and the bag began to slip.
. The {fruit} rolled in every direction, down to the river. / All the {fruit} fell on the road, and some of them rolled into the water. / One after the other, the {fruit} bounced away.
. {A} sat down and was {verysad}. / {A} ran after them, but {A.he} had only two hands. / "Help!" cried {A}.
. {B} had seen it and came running. {B.he.c} caught as many as {B.he} could. / Then {B} came and helped to pick them up, without one bad word. / {B} jumped in front of them and stopped the {fruit} with {B.his} hat.
. "Why do you help me?" asked {A}. "I gave you nothing." / {A} was ashamed. "I was greedy," {A.he} said. "I am sorry."
. "Because you needed help," {B} {saidkind}. / "Next time you can help me," {B} {saidkind}.
-
. Then {A} divided the {fruit} into two equal heaps, and they ate together by the river. / They sat down in the grass and shared the {fruit}, one for you, one for me. / {A} gave {B} the biggest half.
? The {fruit} had never tasted so good. / And there were still some left for supper. / Even the ducks got a few.

= race patience
title The Race to the {P.t} / Slow and Steady / {A} Takes Part in a Race
sum {B} boasted and rested too long, and {A}, who never stopped, won the race. / {A} won the race against {B} because {A.he} went on step by step.
ask Who won the race? > {A} won the race. / It was {A}.
ask Why did {B} lose? > {B} lost because {B.he} boasted and rested too long. / {B.he.c} stopped to rest and fell asleep.
moral Steady feet arrive. / He who boasts at the start is quiet at the end. / A slow step is still a step.
. {oncetime}, {B.intro} said to everyone, "Nobody is as fast as I am." / Every day {B.intro} boasted about {B.his} quick legs.
. {A.intro} heard it and said, "I will race you to the {P.n}." / "Then race me," said {A.intro}. / At last {A.intro} had heard enough. "Let us race to the {P.n}," {A.he} said.
. Everyone laughed, but {A} only smiled. / "You?" laughed {B}. "You will still be walking tomorrow." / {B} laughed so loudly that the ducks flew up.
. {W.s}, and the whole village came to watch. / They began at the old bridge. {W.s}. / The smith hit his anvil, and the race began.
-
. {B} shot away and was soon out of sight. / {B} was far ahead after the first bend. / In a moment {B} was gone, in a cloud of dust.
. "I have time," thought {B}, and {B.he} lay down under a tree. / But {B.he} stopped to eat {food}, and then {B.his} eyes closed. / Then {B.he} sat down to rest, and soon {B.he} was asleep.
. {A} went on, step by step, and did not stop. / {A} was tired, but {A.he} thought only of the next step. / Slowly and quietly {A} came along the road and passed {B.him}.
-
. When {B} woke up, {A} was already at the {P.n}. / {B} woke with a start and ran, but it was too late. / At the end of the day {B} saw {A} sitting {P.at}, with a ribbon round {A.his} neck.
. "How did you do it?" asked {B}. / {B} could not believe it. "You won!" {B.he} said.
. "I only walked," said {A}. "But I walked all the way." / "I did not stop," said {A}. "That is all." / {A} smiled and said, "One step, and then another."
? {B} never boasted again, or at least not before breakfast. / They shared {supper} that evening. / Everyone cheered.

= wheel helping
title The Day the Mill Stood Still / Why the Wheel Stopped / {A} and the Mill Wheel
let cause a big branch / a nest with five eggs / a lump of ice / an old boat / a sleepy beaver / a heap of reeds / somebody's trousers
sum The mill wheel stopped because of {cause}, and {A} and {B} made it turn again. / {A} and {B} found {cause} in the mill wheel and set it free.
ask Why did the wheel stop? > There was {cause} in it. / Because of {cause}.
ask Who found the cause? > {A} found it. / It was {A}.
moral First look, then mend. / A big wheel may be stopped by a small thing. / Many hands turn the heaviest wheel.
. {oneday}, the mill was silent. / One day the wheel of the mill stood still. / For the first time in years, nobody heard the mill.
. No wheel meant no flour, and no flour meant no bread. / The miller shook her head, and the baker looked at her empty shelves. / "Without flour there will be no bread tomorrow," said Elsie the baker.
. {A.intro} came to look. / {A.intro}, who was passing by, stopped and listened. / Then {A.intro} had an idea.
. {W.s}, and {W.does}. / {W.s}, but that was not the cause.
. {A} climbed down to the water and looked between the boards. / "A wheel doesn't stop for nothing," said {A}, and {A.he} waded into the cold stream. / {A} walked once around the mill and looked at every part.
. There, deep in the wheel, was {cause}. / And there {A.he} saw it: {cause} was stuck in the wheel. / "I have found it," called {A}. "It is {cause}!"
-
. {A} pulled and pulled, but {A.he} was not strong enough alone. / Alone {A.he} could not move it. / {A.he.c} tried it with a pole, and {A.he} tried it with a rope, but nothing helped.
. Then {B.intro} came with a long rope. / "Wait," said {B.intro}. "I will help you." / So {A.he} called {B.intro}, who was good with ropes.
. "One, two, three!" they cried, and they pulled together. / They counted to three and pulled as hard as they could. / Very carefully they lifted it out, bit by bit.
. The wheel groaned, it shook, and then it turned. / With a splash it came free, and the wheel began to turn. / Slowly, slowly, the wheel moved again.
-
. The next morning there was warm bread for everyone. / That evening Elsie baked a cake for {A} and {B}. / Mara the miller thanked them both and gave them a sack of flour.
? {A} was {veryhappy}. / And the mill sang its old song again. / The children clapped their hands.

= lie honesty
title The Broken {T} / {A} Tells the Truth / Who Broke the {T}?
sum {A} broke {B}'s {T} and lied about it, but then {A.he} told the truth and was forgiven. / {A} broke a {T} and was afraid to say so. In the end {A.he} told {B} the truth.
ask Who broke the {T}? > {A} broke it. / It was {A}.
ask Whose {T} was it? > It was {B}'s {T}. / It belonged to {B}.
ask Did {A} tell the truth? > Yes, in the end {A.he} told the truth. / Not at first, but later {A.he} did.
moral The truth is heavy only until you say it. / A mended thing can hold, and so can a mended word. / One lie needs ten more to stand on.
. {B.intro} had {T.a}, and {B.he} was proud of it. / {oncetime}, {B.intro} kept {T.a} on a shelf by the window.
. {oneday}, {A.intro} came to visit and picked it up, although nobody had allowed it. / {A.intro} was playing there, and {A.he} only wanted to look at it. / {A.intro} saw it and could not keep {A.his} hands away.
. The {T} slipped, fell and broke in two. / Crack! The {T} lay in pieces on the floor. / It fell on the stones, and a piece broke off.
. {A} hid the pieces under a cloth. / Quickly {A.he} pushed the pieces under the bed.
-
. "Have you seen my {T}?" asked {B}. / In the evening {B} asked, "Where is my {T}?"
. "No," said {A}, and {A.his} face grew hot. / "Perhaps the wind took it," said {A}. / "It was the cat," said {A} quickly.
. That night {A} could not sleep. / {A} went home, but supper did not taste good. / All night {A.he} turned from one side to the other.
. The lie lay on {A.his} chest like a stone. / "I must tell the truth," {A.he} thought. / {A.he.c} thought of {B}'s sad face.
-
. In the morning {A.he} went back. "I broke it," {A.he} said. "And then I lied. I am sorry." / At sunrise {A} knocked at the door. "It was me," {A.he} {saidsad}. "I broke your {T}."
. {B} was quiet for a while. Then {B.he} smiled. / {B} looked at {A.him} for a long time. / {B} put down {B.his} cup and nodded.
. "A {T} can be mended," {B.he} {saidkind}. "It was harder to tell the truth." / "Thank you for telling me," {B} {saidkind}. "That was brave." / "I am sad about the {T}," said {B}, "but I am glad that you came."
. Together they mended the {T} with glue and string. / They sat down and mended it piece by piece. / {A} worked in the garden for a week, and then they bought a new one.
? You could still see the crack, but {B} liked it even more. / {A} felt light again. / That night {A} slept like a stone.

= gift friendship
title A Gift for {B} / The Best Gift / {B}'s Birthday
let wrong the dog sat on it / the rain got in / the paint was still wet / one side was longer than the other / it fell into the mud / a goat ate a corner of it
sum {A} made a {T} for {B}. Something went wrong, but {B} loved it. / {A} gave {B} a {T} that was not perfect, and {B} was happy all the same.
ask What did {A} make? > {A} made a {T}. / {A.he.c} made {T.a}.
ask For whom was the gift? > It was for {B}. / For {B}.
ask What went wrong? > As it happened, {wrong}. / Well, {wrong}.
moral The best gift has your fingerprints on it. / Love shows best where the work is crooked. / A gift is the time that is inside it.
. It was nearly the birthday of {B.intro}, and {A.intro} had no gift. / {A.intro} wanted to give {A.his} friend something special. The friend was {B.intro}. / Soon it would be the birthday of {B.intro}, and {A.intro} wanted to make a gift.
. {A} had no money, so {A.he} decided to make {T.a}. / "I will make {T.a}," {A.he} said to {A.himself}.
. {A.he.c} worked {P.at} every evening for a week. / {A.he.c} had never made one before, and {A.he} hurt {A.his} thumb twice. / All night {A.he} worked by the light of a candle.
. But on the last day {wrong}. / It was almost ready. Then {wrong}. / Then, just before the party, {wrong}.
. "Now it is ruined," {A.he} {saidsad}. / {A} was {verysad}. / "I can't give this to anyone," {A.he} {saidsad}.
-
. There was no time to make another, so {A} wrapped it in paper and went. / {A} almost stayed at home. Then {A.he} took a deep breath and went to the party. / With slow steps {A} went to {B}'s house.
. The table was full of fine things, and {A} put {A.his} gift behind the others. / "It is not very good," said {A}, and {A.he} looked at the floor.
. {B} opened it and was silent. / {B} turned it over and over in {B.his} hands. / {B} opened the paper slowly.
. "You made this yourself?" {B} asked. / "Is this really for me?" {B} asked.
. "It is the best gift of all," {B} {saidglad}. / "Nobody has ever made me {T.a}," {B} {saidglad}. / "I will keep it for ever," {B} {saidglad}.
? The {T} still stands by {B}'s window. / Then they ate {supper}. / {A} was {veryhappy}.

= magpie forgiveness
title The Thief in the Tree / {A} and the Magpie / The Shiny {T}
sum A magpie took {A}'s {T}, and {A} got it back by giving the magpie something else. / The {T} of {A} was in a magpie's nest. {A} swapped it for a shiny thing.
let shiny a glass bead / a tin spoon / a silver button / a piece of blue glass / a bright nail / a brass hook
ask Who took the {T}? > A magpie took it. / It was the magpie.
ask What did the magpie get instead? > The magpie got {shiny}. / {shiny}.
moral Ask before you blame. / A thief is sometimes only someone who has nothing. / A fair trade is better than a fight.
. {A.intro} kept {T.a} on the window sill. / {oncetime}, {A.intro} was given {T.a}. / In the whole village nobody had {T.a} like the one of {A.intro}.
. {oneday}, it was gone. / But {oneday.l} the window was open, and the {T} was not there. / When {A.he} came back from the {P.n}, it had disappeared.
. At first {A.he} thought that {B.intro} had taken it. / "It was surely {B.intro}," {A.he} said angrily.
. "I did not take it," said {B}. "But I saw something shiny in the tree." / "Me?" said {B}. "No. But look up there." / {B} was hurt. "I would never do that," {B.he} said. "Come, I will help you look."
-
. High in the tree was a nest, and in the nest sat a magpie on the {T}. / In the top of the tallest tree a magpie had made her nest, and there was the {T}.
. "That is mine," called {A}. / "Please give it back," said {A}.
. "I only wanted something that shines," said the magpie. "My nest is so grey." / "Nobody ever gives me anything," said the magpie. / "I found it, so it is mine," the magpie chattered.
. {A} thought about it. Then {A.he} took {shiny} out of {A.his} pocket. / "Would you like {shiny} instead?" asked {A}.
. The magpie put her head to one side, and then she nodded. / "That is much prettier," said the magpie, and she let the {T} fall into {A.his} hands.
-
. "I am sorry that I blamed you," {A} said to {B}. / {A} turned to {B}. "Please forgive me," {A.he} said.
. "It is forgotten," {B} {saidkind}. / "You were afraid for your {T}," {B} {saidkind}. "I understand." / {B} laughed and gave {A.him} a push.
? And on Sundays {A} brings the magpie something that shines. / They {home}. / {night}.

= seed patience
title The Slow Seed / {A} Plants a Seed / The {plant.c} of {A}
let plant sunflower / apple tree / bean / rose / pumpkin / walnut tree / poppy / cabbage
sum {A} planted a {plant} and learned to wait until it grew. / {A} wanted {A.his} {plant} to grow at once, but it needed time.
ask What did {A} plant? > {A} planted a {plant}. / {A.he.c} planted a {plant}.
ask Who told {A} to wait? > {B} told {A.him} to wait. / It was {B}.
moral Growing is quiet work. / You can't hurry a root. / Water, wait, and do not dig it up.
. {oneday}, {A.intro} got a seed from {B.intro}. / {B.intro} gave {A.intro} a small brown seed.
. "What will it be?" asked {A}. "Plant it and see," said {B}. / "It is a {plant}," said {B}. "Put it in the earth and give it water."
. {A} dug a hole {P.at}, put the seed inside and covered it with earth. / {A} planted it {P.at} and gave it a whole bucket of water.
. The next day {A.he} looked, but there was nothing. / {A.he.c} sat down beside it and waited all afternoon. / "Grow!" said {A}, but the seed did not listen.
. {A.he.c} looked on the second day, and on the third. Nothing. / {A} sang to it, and {A.he} danced around it, and {A.he} shouted at it.
. "It is broken," {A.he} {saidsad}. / "I will dig it up," said {A}. / "It has forgotten to grow," {A.he} told {B}.
-
. "Leave it," {B} {saidkind}. "It is working where you can't see it." / "A seed has its own clock," {B} {saidkind}. / "Did you grow tall in one day?" {B} asked.
. So {A} gave it water every morning and waited. / {A} went away and learned to do other things. / The rain came, and the sun came, and the days went by.
. Then, {oneday.l}, there was a green tip in the earth. / After three weeks, a tiny leaf came up. / One morning {A} saw something green, as small as a fingernail.
. {A} did not shout this time. {A.he.c} only smiled. / {A} ran to {B}. "It is here!" {A.he} {saidglad}.
-
. By the end of summer the {plant} was taller than {A}. / The {plant} grew and grew until everyone came to see it. / In autumn the {plant} was the finest in the valley.
? {A} kept one seed and gave it to a child. / "I knew it," said {B}. / {A} was {veryhappy}.

= fog helping
title Lost in the Fog / The Bell in the Fog / How {A} Found the Way
let sound a bell / a fiddle / a whistle / a drum / a song / the barking of a dog
sum {A} was lost in the fog, and {B} led {A.him} home with {sound}. / {A} could not see the way in the fog. {A.he.c} followed {sound} and came home.
ask Where was {A} lost? > {A.he.c} was lost {P.at}, in the fog. / In the fog, {P.at}.
ask What did {A} follow? > {A.he.c} followed {sound}. / {sound}.
moral When you can't see, listen. / A small sound can be as good as a light. / Somebody is always waiting for you.
. {A.intro} went {P.at} to gather mushrooms. / {oneday}, {A.intro} was still {P.at} when the fog came. / {oncetime}, {A.intro} stayed out too long {P.at}.
. The fog rose from the river until there was no path, no tree and no sky. / It was so thick that {A.he} could not see {A.his} own feet.
. {A} walked to the left, and then {A.he} walked to the right, but everything was grey. / "I came this way," {A.he} thought. Then {A.he} saw {A.his} own footprints. / {A} turned round three times, and now {A.he} knew nothing at all.
. {A.he.c} was cold and {verytired}. / "Hello?" {A} called, but only the fog answered. / {A} sat down on a stone and tried not to cry.
-
. At home {B.intro} looked out of the window. "{A} is not back yet," {B.he} said. / In the village {B.intro} saw the fog and thought of {A}. / {B.intro} had laid the table for two, and nobody came.
. "In this fog nobody can see a lamp," {B} said. "But everyone can hear." / {B} thought hard. Then {B.he} had an idea.
. So {B} stood on the bridge, and soon {sound} could be heard far over the fields. / {B} went to the bridge. And out into the fog went {sound}, again and again.
-
. {A} lifted {A.his} head. Was that {sound}? / Far away {A} heard {sound}.
. {A.he.c} followed it, step by step, with {A.his} hands in front of {A.him}. / When it was loud, {A.he} went on, and when it was soft, {A.he} turned back. / Slowly {A.he} {walked} toward it.
. And then there was the bridge, and on the bridge was {B}. / At last {A} saw a shadow, and the shadow was {B}.
. "I heard you," said {A}. "I always will," said {B}. / "You are home," {B} {saidkind}, and {B.he} put a blanket round {A.him}. / {A} hugged {B} and did not let go for a long time.
? They drank hot tea by the fire. / They ate {supper}. / The fog stayed for two more days, but nobody minded.

= trade cleverness
title {A} Makes Four Trades / The Long Way to a {T} / {A} Goes to Market
let one an egg / a ball of wool / a jar of jam / a loaf of bread / a bunch of roses
let two a fish hook / a clay bowl / a wooden comb / a pair of socks / a sack of onions
let three a fine cheese / a warm cap / a new bucket / a bag of salt / a brass bell
sum {A} traded {one} for {two}, and {two} for {three}, and at last {A.he} got a {T}. / By clever trades {A} turned {one} into a {T}.
ask What did {A} have at first? > At first {A.he} had {one}. / {A.he.c} had {one}.
ask What did {A} get in the end? > In the end {A.he} got a {T}. / {A.he.c} got {T.a}.
moral Give people what they need, and you will get what you need. / A good trade makes two people smile. / Small steps go far.
. {A.intro} wanted {T.a}, but {A.he} had no money. {A.he.c} had only {one}. / {oncetime}, {A.intro} dreamed of {T.a}. All {A.he} owned was {one}.
. So {A.he} went to the market. {W.s}. / "I will see what I can do," {A.he} said, and {A.he} {walked} to the market.
. There {A.he} met {B.intro}, who needed just that. "I will give you {two} for it," said {B}. / First {A.he} met {B.intro}. "{B.he.c} needs it more than I do," thought {A}, and {A.he} traded {one} for {two}.
-
. Then a traveller saw {two} and cried, "I have looked for that all week! Take {three} for it." / On the bridge an old man stopped {A.him}. He had {three} and wanted {two}. They shook hands.
. And so {A} had {three}. / Now {A.he} had {three}, and {A.he} was {veryhappy}.
. At the end of the street stood a woman with {T.a}. "I would give it for {three}," she sighed. / By the well sat a woman who had {T.a} and needed {three}.
. "That is what I have," said {A}, and {A.he} laughed. / {A} could hardly believe it. "Then let us trade," {A.he} said.
-
. In the evening {A} showed the {T} to {B}. / On the way home {A.he} met {B} again.
. "How did you get it?" asked {B}. "With {one}," said {A}. / "Yesterday you had only {one}," said {B}. "How clever you are!"
? And everyone had what they needed. / {B} laughed until {B.his} hat fell off. / {night}, and they {home}.

= stranger kindness
title A Stranger at the Inn / The New Neighbour / {B} Comes to the Valley
let skill play the flute like a bird / mend any clock / tell stories about the sea / bake bread with seeds / carve little boats / find water with a stick / name every star
sum Nobody trusted {B}, the newcomer, but {A} was kind, and they became friends. / {B} was new in the village. {A} welcomed {B.him}, and soon everyone did.
ask Who was the stranger? > The stranger was {B}. / It was {B}.
ask Who was kind to the stranger? > {A} was kind. / It was {A}.
ask What could {B} do? > {B} could {skill}. / {B.he.c} could {skill}.
moral A stranger is a friend without a chair. / Open the door first and judge later. / Every friend was new once.
. {oneday}, {B.intro} came to the village with a bag and a tired face. / {W.s} when {B.intro} came over the bridge. Nobody knew {B.him}. / A new face came to the valley: {B.intro}.
. People closed their windows and whispered. / Nobody said good morning. / "We don't know you," they said, and they turned away.
. {B} sat {P.at}, all alone. / So {B} slept {P.at}, under the open sky.
. {A.intro} saw it and thought, "{B.he.c} looks hungry." / {A.intro} had once been new, too, and {A.he} remembered it. / But {A.intro} was curious and came closer.
-
. {A} brought {food} and sat down. "I am {A}," {A.he} said. / "Would you like some soup?" asked {A}. / "Are you cold?" asked {A}, and {A.he} gave {B.him} a blanket.
. "Thank you," said {B}. "You are the first who speaks to me." / {B} looked up in surprise and smiled for the first time.
. They talked until the lamps were lit, and {A} learned that {B} could {skill}. / Soon {A} found out that {B} could {skill}.
-
. The next day {A} took {B} to the market and told everyone. / "You must see this," {A} told the others. / At the feast on Saturday, {A} asked {B} to show it.
. When the people saw what {B} could do, they came closer, one by one. / First a child clapped. Then everyone clapped.
. "We were wrong," said the innkeeper, and she brought {supper}. / "Please stay," the people said. / Soon nobody remembered that {B} had ever been a stranger.
? {B} built a little house {P.at}. / {A} and {B} had breakfast together every Sunday. / {B} stayed for the rest of {B.his} life.

= fish kindness
title The Silver Fish / {A} and the Talking Fish / One Good Turn
sum {A} caught a talking fish and let it go, and later the fish gave back {A.his} {T}. / {A} was kind to a fish, and the fish found {A.his} {T} in the river.
ask What did {A} catch? > {A} caught a silver fish. / {A.he.c} caught a fish that could talk.
ask What did the fish bring? > The fish brought the {T}. / It brought {A.his} {T}.
moral Kindness swims back to you. / Let go, and you will hold more. / No good deed is lost, not even in a river.
. {A.intro} went fishing {P.at}. / {oneday}, {A.intro} sat by the river with a long rod. / {oncetime}, {A.intro} was hungry and went to catch a fish.
. {W.s}, and for hours nothing happened. / {A.he.c} waited all morning. / {W.s}. Even the frogs were asleep.
. {then} the line pulled hard, and {A.he} drew out a fish as bright as silver. / All at once there was a splash, and a silver fish hung on the hook.
. "Please let me go," said the fish. "I have seven small children." / "Stop!" said the fish. "I am too old to be eaten." / The fish opened its mouth and said, "If you let me go, I will not forget it."
. {A} was so surprised that {A.he} nearly fell into the water. / {A} had never heard a fish speak.
. {A.he.c} was hungry, but {A.he} put the fish back into the river. / "Go home," {A} {saidkind}, and {A.he} let it go. / So {A} took out the hook, very gently, and the fish swam away.
? That night {A.he} ate only {food}.
. "You are too soft," said {B.intro}, who had seen it. / "There goes our supper," laughed {B.intro}, who had seen it all.
-
. A week later {A} lost {A.his} {T} in the river. / Some time later {A} was on the ferry, and {A.his} {T} fell into deep water. / In the autumn {A.his} {T} slipped from {A.his} hand and sank.
. "It is gone for ever," {A.he} {saidsad}. / {A} looked down into the green water and was {verysad}. / It was {T.a}, and there was no other like it.
. Then the water moved, and up came the silver fish with the {T} in its mouth. / But something silver shone in the deep. It was the fish, and it carried the {T}.
. "I told you that I would not forget," said the fish. / "One good turn for another," said the fish, and it was gone.
? {A} waved for a long time. / {A} never told anyone, but {A.he} never fished there again. / {A} was {veryhappy}.

= learn patience
title {A} Learns to {skill.c} / Once More / The Pupil
let skill swim / whistle / bake / skate / weave / read / dance / row / sew / climb / juggle / paint
sum {A} wanted to learn to {skill}. {A.he.c} failed many times, but {B} helped {A.him}, and at last it worked. / With {B}'s help {A} learned to {skill}.
ask What did {A} want to learn? > {A} wanted to learn to {skill}. / {A.he.c} wanted to {skill}.
ask Who was the teacher? > {B} was the teacher. / It was {B}.
moral Every master was once a mess. / Fall seven times, get up eight times. / Practice is a slow kind of magic.
. {A.intro} wanted to learn to {skill}. / More than anything, {A.intro} wanted to {skill}. / {oncetime}, {A.intro} saw somebody {skill} and wanted to do it too.
. So {A.he} went to {B.intro}, who was very good at it. / "Will you teach me?" {A.he} asked {B.intro}. / {B.intro} was the best teacher in the valley.
. "Yes," said {B}, "if you promise to fail a hundred times." / "Of course," said {B}. "Come {P.at} tomorrow at six."
-
. On the first day everything went wrong. / The first try was terrible. Even the ducks looked away. / {A} tried it once, and {A.he} fell flat on {A.his} nose.
. The second day was no better. / The second try was worse. / {A} tried again, and {A.he} tried again after lunch.
. "I will never learn it," {A} {saidsad}. / "I give up," said {A}. / {A} was {verytired} and wanted to go home.
. "You have only failed twelve times," said {B}. "You have eighty-eight left." / "Do you know how often I failed?" asked {B}. "I stopped counting at a thousand." / "Look at the river," {B} {saidkind}. "It made this valley, and it never hurried."
. So {A} tried once more, and once more after that. / {A} dried {A.his} eyes and began again. / Every day {A.he} practised {P.at}, in sun and in rain.
-
. And then, {oneday.l}, it worked. / One morning {A.he} did it without thinking. / {then} it happened: it was easy!
. "I can do it!" {A} {saidglad}. "I can {skill}!" / "Did you see that?" {A} {saidglad}.
. "I saw it," said {B}, who was as proud as a swan. / "That was number one hundred," said {B} and smiled. / {B} nodded. "Now you can teach somebody else," {B.he} said.
? And that is just what {A} did. / They celebrated with {supper}. / {A} was {veryhappy}.

= moon wonder
title The Moon in the Well / {A} and the Moon / Catching the Moon
let tool a bucket / a net / a basket / a spoon / a rope / a jar / a ladder
sum {A} thought that the moon had fallen into the well and tried to catch it with {tool}. / {A} tried to save the moon with {tool}, but it was only a reflection.
ask What did {A} see in the well? > {A} saw the moon in the well. / The moon.
ask What did {A} use? > {A.he.c} used {tool}. / {tool}.
moral Look up before you look down. / Some things are yours only while you leave them where they are. / Not everything that shines wants to be caught.
. One clear night {A.intro} went to the well for water. / {oncetime}, {A.intro} looked into the well at midnight.
. There, deep down, {A.he} saw the moon. / And what did {A.he} see? The moon was swimming in the water!
. "The moon has fallen in!" cried {A}. / "Poor moon," said {A}. "It must be cold down there." / "Without the moon the nights will be dark for ever," thought {A}.
. {A.he.c} ran home and came back with {tool}. / "I will get you out," {A.he} said, and {A.he} fetched {tool}.
. {A} tried and tried, but the moon broke into a hundred pieces and came together again. / Each time {A.he} touched the water, the moon slipped away. / {A} worked until {A.his} sleeves were wet.
-
. {B.intro} heard the noise and came out. / "What are you doing?" asked {B.intro}. / At last {B.intro} came by with a lamp.
. "I am saving the moon," said {A}. / "The moon is in the well," {A} said, quite out of breath.
. {B} did not laugh. "Then who is that?" {B.he} asked and pointed at the sky. / "Look up," {B} {saidkind}.
. There was the moon, round and bright above the hill. / {A} looked up, and the moon looked down.
-
. "I pulled so hard that it flew up again!" {A} {saidglad}. / {A} was silent. Then {A.he} began to laugh. / "It is safe," {A} {saidglad}, and {A.he} sat down in the grass.
. "Well done," said {B}, for {B.he} was {kindadj}. / They sat by the well and looked at both moons. / "The whole valley thanks you," said {B}.
? And the moon, people say, shone a little brighter that night. / Since then {A} says good night to both of them. / Then they {home}.

= winter sharing
title The Cold Winter / One Fire for All / {A} and the Last Log
sum In a hard winter {A} shared the last wood with {B}, and later all the neighbours shared what they had. / {A} and {B} got through the cold winter by sharing one fire.
ask What did {A} share? > {A} shared the last wood. / {A.he.c} shared {A.his} firewood.
ask With whom did {A} share the fire? > With {B}. / {A} shared it with {B}.
moral One fire warms many, if the door is open. / Winter is short for those who share. / Cold hands find each other.
. It was the coldest winter that anyone could remember. / {oncetime} there was a winter so cold that the river stood still. / Snow lay as high as the windows, and the river was frozen.
. {A.intro} had only three logs left. / In a little house {P.at}, {A.intro} put the last wood on the fire. / {A.intro} counted {A.his} wood every night, and every night there was less.
. There was a knock at the door. / {oneday.l.c} somebody knocked. / Then {A.he} heard a soft knock.
. Outside stood {B.intro}, white with snow. "My fire is out," {B.he} said. / It was {B.intro}, and {B.he} could hardly speak for cold.
-
. {A} looked at the small heap of wood, and then {A.he} looked at {B}. / {A} thought about it, but not for long.
. "Come in," {A.he} said. "There is room by the fire." / "One fire is enough for two," {A} {saidkind}. / {A} pulled a second chair to the fire.
. {B} had no wood, but {B.he} had {food} in {B.his} pocket. / "I have no wood," said {B}, "but I have a pot and some barley."
. They ate, and they told stories, and it was warmer than before. / They shared everything, and the night did not seem so long.
-
. The next evening two more neighbours came, and each of them brought a log. / Soon others heard about it and came with wood, blankets and songs. / Day after day more friends came, and each brought something small.
. So the fire never went out, and at last the ice on the river broke. / They sat together until spring. / When the snow melted, they were almost sorry.
? Even now they meet on the coldest day of the year. / In spring they planted a tree for every log. / {A} still has the second chair.

= map wonder
title The Old Map / {A} and {B} Look for Treasure / The Treasure by the River
let gold a tree full of golden pears / a box of old letters / a spring of clear water / a view of the whole valley / a chest with two spoons and a note / a garden that everyone had forgotten
sum {A} and {B} followed an old map and found {gold}. / An old map led {A} and {B} to {gold}.
ask What did they find? > They found {gold}. / {gold.c}.
ask Who went with {A}? > {B} went with {A.him}. / It was {B}.
moral The road was half of the treasure. / Not all gold is yellow. / Go with a friend, and you have found something already.
. {A.intro} found an old map under {T.a}. / Under the floor {P.at}, {A.intro} found a piece of paper. It was a map. / {oneday}, a paper lay under {T.a}, and {A.intro} picked it up. It was a map.
. On it was a red cross and the words: twenty steps from the crooked pine. / It showed the river, the mill and, far up, a small red cross.
. {A} ran to {B.intro}. "There is a treasure," {A.he} whispered. / {A.he.c} showed it to {B.intro}. "Shall we go?" {A.he} asked.
. "I will bring a spade," said {B}. / "I have always wanted to find a treasure," said {B}. / {B} was already putting on {B.his} boots.
-
. They crossed the bridge and followed the river up to the weir. / They went past the mill, over the stones and through the reeds. / {W.s}, but they did not care.
. {B} fell into the mud, and {A} was chased by a goose. / They took the wrong path twice and ate all their bread before noon. / At noon they rested and shared {food}.
. At the crooked pine they counted twenty steps. / At last they stood in the right place, and {A} counted aloud.
. They dug, they pushed a bush aside, and there it was. / Behind the bushes something was waiting for them.
-
. It was not gold. It was {gold}. / They found no coins. They found {gold}.
. "That is better than gold," said {A}. / "Are you disappointed?" asked {B}. "Not at all," said {A}. / They stood there for a while and said nothing.
. They told nobody but their best friends, and in the end everybody knew. / They drew a second map, so that others could find it too. / They put the map back, for the next one.
? {night}, and they {home}. / That day they were {verytired}, and {veryhappy} too. / And they often went back.

= song music
title The Song of the River / {A} Brings Back the Music / The Quiet Feast
sum The feast was silent until {A} played, and {B} and all the others danced. / {A} was shy, but {A.he} made music, and the feast was saved.
let music a flute / a drum / a fiddle / two spoons / a tin whistle / nothing but {A.his} own voice
ask What did {A} use to make music? > {A.he.c} used {music}. / {music.c}.
ask Who asked {A} to play? > {B} asked {A.him}. / It was {B}.
moral A small song is better than a great silence. / Nobody hears the wrong notes when everyone is dancing. / Play, and somebody will dance.
. It was the night of the {season} feast, but there was no music. / Every year the village had a feast {P.at}, with music and lamps. This year the fiddler was ill. / Sunniva the fiddler had a cold, and the feast was as quiet as a Monday.
. People stood around and looked at their shoes. / The lamps were lit, the cakes were cut, but nobody danced.
. {A.intro} could make music, but {A.he} was too shy to say so. / At the back stood {A.intro}, who loved music and had never played for others. / Hardly anyone knew that {A.intro} made music every night by the river.
. {B.intro} gave {A.him} a push. "Now," {B.he} said. / "You could play," whispered {B.intro}. / {B.intro} turned round. "I heard you by the river," {B.he} said. "Please play."
. "I can't," said {A}. "What if I make a mistake?" / {A} grew red up to the ears. / "They will laugh at me," {A} whispered.
-
. "Then I will laugh with you," said {B}. / "Then close your eyes and think of the river," {B} {saidkind}. / "One song," {B} {saidkind}. "A short one."
. So {A} stood up with {music} and shaking knees. / {A} took a deep breath. {A.he.c} had {music}, and that was all.
. The first notes were thin, like rain on a leaf. / {A} began very softly.
. Then a foot began to tap, and then another. / Then an old man got up and bowed to his wife. / One child danced, and then all the children danced.
-
. Soon the whole village was dancing, and the song grew and grew. / The music ran through the feast like the river in spring.
. "Again!" they cried, when it was over. / Nobody had heard a mistake, and nobody had listened for one. / They danced until the lamps went out.
? Since then there have been two players at every feast. / {A} was {veryhappy}. / Even the geese kept time.

= boat cleverness
title {A} Builds a Boat / A Boat for Two / The Boat That Leaked
let fix wax and old cloth / tar and patience / a cork and a song / a piece of leather / moss and pitch
sum {A} and {B} built a boat that leaked, and they mended it with {fix}. / The boat of {A} and {B} had a hole, but {fix} made it tight.
ask What did they build? > They built a boat. / A boat.
ask How did they mend it? > They mended it with {fix}. / With {fix}.
moral A hole shows you where to work. / The first boat teaches you to build the second. / Plan, try, mend, and try again.
. {A.intro} wanted to see what lay behind the bend of the river. / {oncetime}, {A.intro} wished to go down the river to the sea. / "What is behind the bend?" {A.intro} asked every day.
. {A} told {B.intro} about it, and they began to build a boat. / "We need a boat," said {B.intro}. "Let us build one." / "Will you build a boat with me?" {A.he} asked {B.intro}, and so they began.
. They took boards from the old fence and nails from the smithy. / They worked {P.at} for nine days. / {A} sawed, and {B} hammered, and sometimes it was the other way round.
. On the tenth day they pushed it into the water, and everyone came to watch. / {W.s} when they put the boat into the river.
-
. It floated for as long as it takes to say hello. Then it sank. / At first it was splendid. Then their feet were wet. / "It floats!" cried {A}. "It leaks!" cried {B}.
. They sat in the water up to their necks. / The ducks swam around them and made remarks. / Everyone laughed, and they swam to the bank.
. "That was that," {A} {saidsad}. / {A} was {verysad}. "All that work," {A.he} said.
. But {B} turned the boat over and looked at it. "Only one hole," {B.he} said. "Only one!" / "We built a boat with one hole," said {B}. "Now we need a boat with no hole. We are nearly there."
-
. They mended it with {fix}, and this time they tested it first. / With {fix} they closed the hole, and then they waited a whole day.
. The next morning the boat lay on the water like a leaf. / And it floated. It floated and floated.
. They rowed around the bend, and there was another bend. / Behind the bend they saw wild swans, and an island, and another bend.
? "Tomorrow we go further," said {A}. / They named the boat after a duck. / They came home for supper, wet and happy.
"""

_TINY_TEXT = """
. {A.intro} found {T.a} {P.at}. {A.he.c} took it home, cleaned it, and gave it back to {B}, who had lost it long ago.
. {W.s}. {A.intro} sat {P.at} and waited for {B.intro}. When {B} came at last, they said nothing and were happy.
. {A.intro} asked {B.intro} for {T.a}. "You may have it," said {B}, "if you bring it back before dark." And {A} did.
. {oneday}, {A.intro} and {B.intro} met {P.at}. {A} had bread and {B} had cheese, so they had lunch.
. {A.intro} wanted to catch the wind in {T.a}. {A.he.c} ran until {A.he} was tired. Then {A.he} laughed, for the wind had caught {A.him}.
. {A.intro} could not sleep. {A.he.c} counted the stars above the {P.n}, and at ninety-nine {A.he} was asleep.
. Every evening {A.intro} carried {T.a} to the {P.n}. Nobody knew why, until the night when {B.intro} needed it.
. {A.intro} planted a button, because {A.he} wanted a coat. {B.intro} saw it, smiled, and hung a coat on the bush at night.
. {A.intro} said, "I am not afraid of anything." Then {B.intro} sneezed, and {A} jumped into the river.
. {B.intro} was ill. {A.intro} brought {food}, told a funny story, and stayed until the fever was gone.
. {A.intro} wrote a letter to the moon. The next night the moon shone right on {A.his} bed, and {A.he} knew that it had been read.
. {W.s}, and {W.does}. {A.intro} lent {A.his} coat to {B.intro}. They were both half wet and both quite happy.
"""

# ------------------------------------------------------------------------------------------------------------ knowledge
_HOWTOS = """
bake bread | Mix flour, water, salt and yeast. / Knead the dough until it is smooth. / Let it rest under a cloth for an hour.\
 / Shape a round loaf. / Bake it in a hot oven until the crust is brown.
mend a net | Spread the net on the grass. / Look for the hole. / Cut away the torn string. / Tie new knots, one after the other.\
 / Pull at it to see that it holds.
make a kite | Cross two light sticks and tie them together. / Cut paper in the shape of a diamond. / Glue the paper to the sticks.\
 / Add a tail of ribbons. / Tie a long string to the middle and wait for wind.
plant a tree | Dig a hole that is deep and wide. / Put the young tree into it. / Fill the hole with good earth.\
 / Press the earth with your foot. / Water it every evening for a month.
light a lantern | Open the little glass door. / Trim the wick. / Hold a match to it. / Close the door before the wind comes.
make apple cake | Peel four apples and cut them. / Stir butter, honey and eggs. / Add flour and a pinch of salt.\
 / Put the apples on top. / Bake it until the kitchen smells sweet.
make vegetable soup | Wash the carrots, onions and beans. / Cut them into small pieces. / Put them into a pot with water and salt.\
 / Let it cook slowly for an hour. / Serve it hot, with bread.
cross the river | Go down to the ferry. / Ring the little bell. / Wait for Tobin. / Sit still in the middle of the boat.\
 / Say thank you on the other side.
catch a fish | Find a quiet place by the river. / Put a worm on the hook. / Throw out the line. / Sit still and wait.\
 / Pull gently when the line moves.
make a candle | Melt the wax in a copper pot. / Hold the wick into the wax. / Lift it out and let it cool.\
 / Dip it again, many times. / Hang it up to dry.
keep warm in winter | Put on a woollen coat and a scarf. / Close the shutters. / Light a fire. / Drink hot tea.\
 / Sit close to a friend.
make a bowl | Take a lump of wet clay. / Put it on the wheel. / Turn the wheel and press with your thumbs. / Let the bowl dry.\
 / Fire it in the kiln.
build a nest box | Saw six small boards. / Nail five of them together. / Cut a round hole in the front. / Put on the roof.\
 / Hang it in a tree, away from cats.
make mint tea | Pick ten fresh leaves. / Boil some water. / Pour it over the leaves. / Wait for five minutes.\
 / Add a spoon of honey.
skip a stone | Find a flat, smooth stone. / Stand sideways to the water. / Bend your knees. / Throw it low and fast.\
 / Count how often it jumps.
find the way home | Stop and listen for the bell. / Look for the river. / Follow the water down. / Turn left at the old bridge.\
 / Knock at your own door.
write a letter | Take a sheet of paper and a pen. / Write the name at the top. / Tell your news. / Sign it at the bottom.\
 / Give it to Verity at the post house.
wash a dog | Fill a tub with warm water. / Call the dog in a friendly voice. / Rub in the soap. / Rinse it well.\
 / Step back before it shakes itself.
"""

_COUPLETS = """
river water wend | The river runs by night and day, / and carries all my cares away.
river water reeds | The reeds are green, the reeds are tall, / they hear the river's evening call.
river boat ferry | A little boat, a wooden oar, / will bring me to the other shore.
mill wheel | The wheel goes round, the wheel goes slow, / and tells the flour where to go.
mill bread bakery | The grain is ground, the bread is brown, / the smell goes drifting through the town.
night moon stars | The moon is round, the moon is white, / it keeps the valley safe at night.
night stars sleep | The stars are out, the day is done, / they twinkle softly, one by one.
night lantern light | I hold my lantern to the dark, / and every shadow meets a spark.
winter snow | The snow came down without a sound, / and laid its blanket on the ground.
winter fire | The fire is warm, the kettle sings, / and winter beats its frozen wings.
spring flowers garden | The primrose lifts her yellow head, / and spring has climbed out of its bed.
spring rain | The rain is soft, the rain is kind, / it leaves a greener world behind.
summer sun meadow | The meadow hums, the sun is high, / the swallows write across the sky.
summer bees honey | The bees are busy all day long, / their honey tastes of sun and song.
autumn leaves | The leaves are gold, the leaves are red, / they dance before they go to bed.
autumn apples orchard | The apples drop, the baskets fill, / and smoke goes up behind the hill.
fox forest | A fox went by on silent feet, / so red, so quick, so very neat.
heron river | The heron stands upon one leg, / too proud to hurry, run or beg.
otter river | The otter rolls, the otter glides, / and down the muddy bank he slides.
owl night | The owl sits in the hollow tree, / and asks the night who it might be.
hedgehog garden | The hedgehog wears a coat of pins, / and sleeps before the snow begins.
frog pond | The frog sits on a leaf to sing, / and thinks that he is pond and king.
mouse mill | A mouse lives underneath the floor, / and asks for crumbs, and asks for more.
cat fire | The cat lies sleeping in the sun, / her day of rest has just begun.
friend friendship | A friend is someone by your side, / who walks with you when roads are wide.
friend home | The door is open, come inside, / the fire is bright, the chair is wide.
wind hill kite | The wind runs laughing up the hill, / and never, never standeth still.
bridge village | The bridge is old, the bridge is strong, / and it has heard our steps so long.
bell village | The bell rings twelve, the bell rings clear, / and tells the valley: noon is here.
hill sheep | The sheep are clouds that came to stay, / and eat the green of hills all day.
music fiddle feast | The fiddle laughs, the dancers spin, / the night is bright, so come on in.
goose duck | The goose goes first, the ducks behind, / and none of them can change her mind.
"""

_OPPOSITES = """
warm cold, big small, old young, wet dry, light dark, fast slow, happy sad, full empty, high low, hard soft, loud quiet,
early late, long short, open closed, brave afraid, heavy light, deep shallow, rich poor, clean dirty, near far, good bad,
strong weak, thick thin, sweet bitter, first last, day night, summer winter, up down, left right, begin end, give take
"""

_RHYMES = """
cat: hat, mat, bat; mill: hill, still, fill; boat: coat, goat, float; light: night, bright, kite; bee: tree, sea, free;
bread: red, bed, head; moon: spoon, soon, noon; rain: lane, train, plain; stone: bone, alone, phone; river: shiver, quiver;
house: mouse, blouse; bell: well, shell, tell; fox: box, socks, rocks; duck: luck, stuck, truck; snow: grow, slow, go;
fish: dish, wish; ring: king, sing, spring; key: bee, tea, knee; book: cook, hook, look; day: hay, play, way
"""

_OUTSIDE = """
the capital of France; quantum physics; computers; the stock market; football; the moon landing; black holes; taxes; cars; the internet;
airplanes; robots; Python; politics; chemistry; the Roman empire; dinosaurs; electricity; television; telephones; London; Paris;
Tokyo; America; China; Africa; Mars; the pyramids; volcanoes; mathematics; programming; JavaScript; databases; the news; movies;
guitars; pizza; chocolate; coffee; sharks; tigers; elephants; lions; camels; penguins; Shakespeare; Einstein; Napoleon; history;
economics; law; medicine; space travel; rockets; satellites; atoms; algebra; machine learning; neural networks; bitcoin; skiing;
tennis; chess; trains; subways; skyscrapers; the ocean floor; deserts; jungles; engines; batteries; photography; philosophy;
an API; a queue; a server; Kubernetes; Linux; the weather tomorrow; today's date; the president; my homework; my email
"""

_SYSTEMS = (
    "You are a helpful assistant.",
    "You are brook, a small model that knows one valley.",
    "You are a friendly storyteller.",
    "You are brook.",
    "Answer kindly.",
    "You are a helpful assistant. Answer in plain English.",
    "You live in the village by the river and like to talk.",
    "Be helpful and clear.",
)
_BRIEF = (
    "Answer briefly.",
    "Be brief.",
    "Answer in one short sentence.",
    "You are a helpful assistant. Keep it short.",
)

_NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_SEASONS = ["spring", "summer", "autumn", "winter"]


# --------------------------------------------------------------------------------------------------------------- tables
def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def _alternatives(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\s/\s", text)]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


@dataclass(frozen=True, slots=True)
class _Villager:
    name: str
    pronoun: str
    job: str
    place: str
    tool: str
    trait: str
    likes: str
    does: str


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    preposition: str
    looks: str
    sounds: str
    found: list[str]
    fact: str

    @property
    def where(self) -> str:
        return f"{self.preposition} the {self.name}"


@dataclass(frozen=True, slots=True)
class _Animal:
    kind: str
    colour: str
    sound: str
    home: str
    food: str
    moves: str
    adjectives: list[str]
    fact: str


@dataclass(frozen=True, slots=True)
class _Thing:
    name: str
    adjectives: list[str]
    purpose: str
    material: str


@dataclass(frozen=True, slots=True)
class _Weather:
    name: str
    sentences: list[str]
    does: str
    noun: str


@dataclass(frozen=True, slots=True)
class _Plot:
    name: str
    theme: str
    lets: list[tuple[str, str]]
    titles: list[str]
    sums: list[str]
    morals: list[str]
    asks: list[tuple[str, list[str]]]
    steps: list[tuple[str, list[str]]]  # (".", "?" or "-", alternatives)


VILLAGERS = [_Villager(*row) for row in _rows(_VILLAGERS)]
PLACES = [_Place(r[0], r[1], r[2], r[3], _listed(r[4]), r[5]) for r in _rows(_PLACES)]
ANIMALS = [_Animal(r[0], r[1], r[2], r[3], r[4], r[5], _listed(r[6]), r[7]) for r in _rows(_ANIMALS)]
THINGS = [_Thing(r[0], _listed(r[1]), r[2], r[3]) for r in _rows(_THINGS)]
WEATHERS = [_Weather(r[0], _alternatives(r[1]), r[2], r[3]) for r in _rows(_WEATHERS)]
_VILLAGER_NAMES = frozenset(villager.name for villager in VILLAGERS)
_PLACE = {place.name: place for place in PLACES}
_NAMES = {
    (group, line.split()[0], name)
    for group, table in (("child", _CHILD_NAMES), ("animal", _ANIMAL_NAMES))
    for line in table.strip().splitlines()
    for name in line.split()[1:]
}


def _names(group: str, pronoun: str) -> list[str]:
    return sorted(name for g, p, name in _NAMES if (g, p) == (group, pronoun))


_NAMES_OF = {(g, p): _names(g, p) for g in ("child", "animal") for p in ("he", "she")}
_RULES = {
    name: _alternatives(text)
    for name, text in re.findall(r"^(\w+): (.*?)(?=^\w+: |\Z)", _RULES_TEXT.strip(), flags=re.MULTILINE | re.DOTALL)
}
_OPPOSITE_PAIRS = [tuple(pair.split()) for pair in _listed(_OPPOSITES)]
_RHYME_LISTS = [(word.strip(), _listed(rhymes)) for word, rhymes in (entry.split(":") for entry in _RHYMES.split(";"))]
_OUTSIDE_TOPICS = [" ".join(topic.split()) for topic in _OUTSIDE.split(";")]
_HOWTO_LISTS = [(row[0], _alternatives(row[1])) for row in _rows(_HOWTOS)]
_COUPLET_LISTS = [(row[0].split(), "\n".join(_alternatives(row[1]))) for row in _rows(_COUPLETS)]
_TINY = [line[2:] for line in _TINY_TEXT.strip().splitlines()]


def _parse_plot(block: str) -> _Plot:
    head, *lines = block.strip().splitlines()
    name, theme = head.split()
    plot = _Plot(name, theme, [], [], [], [], [], [])
    for line in lines:
        mark, _, rest = line.partition(" ")
        if mark in ".?-":
            plot.steps.append((mark, _alternatives(rest)))
        elif mark == "let":
            slot, _, choices = rest.partition(" ")
            plot.lets.append((slot, choices))
        elif mark == "ask":
            question, _, answers = rest.partition(" > ")
            plot.asks.append((question, _alternatives(answers)))
        else:
            {"title": plot.titles, "sum": plot.sums, "moral": plot.morals}[mark].extend(_alternatives(rest))
    return plot


PLOTS = [_parse_plot(block) for block in re.split(r"^= ", _PLOTS_TEXT.strip(), flags=re.MULTILINE) if block]

# -------------------------------------------------------------------------------------------------------------- grammar
_SLOT = re.compile(r"\{([A-Za-z.]+)\}")
_MODIFIERS: dict[str, Callable[[str], str]] = {
    "c": lambda text: text[:1].upper() + text[1:],
    "l": lambda text: text[:1].lower() + text[1:],
    "t": lambda text: " ".join(word[:1].upper() + word[1:] for word in text.split()),
}
_PRONOUNS = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}


def _upper_first(text: str) -> str:
    """Capital letters where a sentence begins; a lone quotation mark in front is passed over."""
    return re.sub(r"(^|[.] |[.]\" |\n)(\"?)([a-z])", lambda m: m[1] + m[2] + m[3].upper(), text)


def _fill(text: str, rng: random.Random, scene: Mapping[str, str]) -> str:
    """`text` with every {slot} filled: from the scene, or by a random alternative of the rule with that name."""

    def value_of(match: re.Match[str]) -> str:
        key, modifiers = match[1], ""
        while key not in scene and key not in _RULES:
            key, _, modifier = key.rpartition(".")
            modifiers = modifier + modifiers
        value = scene[key] if key in scene else _fill(rng.choice(_RULES[key]), rng, scene)
        for modifier in modifiers:
            value = _MODIFIERS[modifier](value)
        return value

    return _SLOT.sub(value_of, text)


def _a(noun_phrase: str) -> str:
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def _and(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


@dataclass(frozen=True, slots=True)
class _Hero:
    name: str
    kind: str  # "fox", "girl", "miller"
    pronoun: str
    intro: str  # how a story names the hero for the first time


def _hero(rng: random.Random) -> _Hero:
    draw = rng.random()
    if draw < 0.5:
        animal = rng.choice(ANIMALS)
        pronoun = rng.choice(("he", "she"))
        name = rng.choice(_NAMES_OF["animal", pronoun])
        phrase = _a(f"{rng.choice(animal.adjectives)} {animal.kind}") if rng.random() < 0.7 else _a(animal.kind)
        return _Hero(name, animal.kind, pronoun, f"{phrase} {rng.choice(('called', 'named'))} {name}")
    if draw < 0.72:
        villager = rng.choice(VILLAGERS)
        return _Hero(villager.name, villager.job, villager.pronoun, f"{villager.name} the {villager.job}")
    pronoun = rng.choice(("he", "she"))
    kind = {"he": "boy", "she": "girl"}[pronoun]
    name = rng.choice(_NAMES_OF["child", pronoun])
    adjective = rng.choice(_RULES["childadj"])
    return _Hero(name, kind, pronoun, f"{_a(f'{adjective} {kind}')} {rng.choice(('called', 'named'))} {name}")


def _cast(rng: random.Random, *, newcomer: bool = False) -> tuple[_Hero, _Hero]:
    """Two heroes who can't be mistaken for each other; a newcomer isn't one of the villagers."""
    first, second = _hero(rng), _hero(rng)
    while second.kind == first.kind or second.name == first.name or (newcomer and second.name in _VILLAGER_NAMES):
        second = _hero(rng)
    return first, second


def _hero_slots(slot: str, hero: _Hero) -> dict[str, str]:
    he, him, his, himself = _PRONOUNS[hero.pronoun]
    return {
        slot: hero.name, f"{slot}.intro": hero.intro, f"{slot}.kind": hero.kind, f"{slot}.he": he, f"{slot}.him": him,
        f"{slot}.his": his, f"{slot}.himself": himself,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- stories
@dataclass(frozen=True, slots=True)
class Story:
    """A story with what may be asked about it."""

    plot: str
    title: str
    paragraphs: tuple[str, ...]
    moral: str
    summary: str
    questions: tuple[tuple[str, str], ...]
    theme: str
    subjects: tuple[str, ...]  # things that one may ask a story about: "a fox", "Mara", "the mill", "snow"
    heroes: tuple[_Hero, _Hero]

    @property
    def body(self) -> str:
        """The paragraphs with an empty line between them."""
        return "\n\n".join(self.paragraphs)


def story(rng: random.Random, cast: tuple[_Hero, _Hero] | None = None, without: str = "") -> Story:
    """One story of two to four short paragraphs, with one cast, one weather and one thing all through it.

    `cast` is drawn when it isn't given; the plot called `without` isn't told.
    """
    plot = rng.choice([plot for plot in PLOTS if plot.name != without])
    first, second = cast or _cast(rng, newcomer=plot.name == "stranger")
    scene, place, thing, weather = _scene(rng, first, second)
    for slot, choices in plot.lets:
        scene[slot] = _fill(rng.choice(_alternatives(choices)), rng, scene)
    paragraphs: list[list[str]] = [[]]
    for mark, alternatives in plot.steps:
        if mark == "-":
            paragraphs.append([])
        elif mark == "." or rng.random() < 0.5:
            paragraphs[-1].append(_upper_first(_fill(rng.choice(alternatives), rng, scene)))
    if rng.random() < 0.3:
        paragraphs[-1].append(_upper_first(_fill("{end}", rng, scene)))
    texts = tuple(" ".join(sentences) for sentences in paragraphs)
    body = " ".join(texts)
    subjects = [first.name if first.intro.startswith(first.name) else _a(first.kind)]
    subjects.append(second.name if second.intro.startswith(second.name) else _a(second.kind))
    if thing.name in body:
        subjects.append(_a(thing.name))
    if place.where in body:
        subjects.append(f"the {place.name}")
    if any(sentence in body for sentence in weather.sentences):
        subjects.append(weather.noun)

    def pick(alternatives: list[str]) -> str:
        return _upper_first(_fill(rng.choice(alternatives), rng, scene))

    return Story(
        plot=plot.name,
        title=pick(plot.titles),
        paragraphs=texts,
        moral=pick(plot.morals),
        summary=pick(plot.sums),
        questions=tuple((pick([question]), pick(answers)) for question, answers in plot.asks),
        theme=plot.theme,
        subjects=tuple(subjects),
        heroes=(first, second),
    )


def _scene(rng: random.Random, first: _Hero, second: _Hero) -> tuple[dict[str, str], _Place, _Thing, _Weather]:
    place, thing, weather = rng.choice(PLACES), rng.choice(THINGS), rng.choice(WEATHERS)
    adjective = rng.choice(thing.adjectives)
    scene = {
        **_hero_slots("A", first), **_hero_slots("B", second), "T": thing.name, "T.adj": adjective,
        "T.a": _a(f"{adjective} {thing.name}"), "P": place.where, "P.at": place.where, "P.n": place.name,
        "P.t": _MODIFIERS["t"](place.name), "W.s": rng.choice(weather.sentences), "W.does": weather.does,
    }  # fmt: skip
    scene["P"] = scene["P.at"]
    return scene, place, thing, weather


def _tiny_story(rng: random.Random) -> tuple[str, _Hero, _Hero]:
    first, second = _cast(rng)
    scene = _scene(rng, first, second)[0]
    template = rng.choice(_TINY)
    return _upper_first(_fill(template, rng, scene)), first, second


# ---------------------------------------------------------------------------------------------------------------- facts
def _about_place(rng: random.Random, place: _Place) -> str:
    keeper = next((v for v in VILLAGERS if v.place == place.name), None)
    found = _and(rng.sample(place.found, 3))
    sentences = [
        rng.choice((f"The {place.name} is {place.looks}.", f"It is {place.looks}.")),
        rng.choice((f"You can hear {place.sounds} there.", f"If you listen, you hear {place.sounds}.")),
        rng.choice((f"There you find {found}.", f"{_upper_first(place.where)} there are {found}.")),
        f"{place.fact}.",
    ]
    if keeper:
        sentences.insert(
            rng.randint(1, 4), f"{keeper.name} the {keeper.job} works there, and {keeper.pronoun} {keeper.does}."
        )
    first, *rest = sentences
    rest = rest[: rng.randint(1, len(rest))]
    return " ".join([first, *rest])


def _about_villager(rng: random.Random, who: _Villager) -> str:
    he, him, his, _ = _PRONOUNS[who.pronoun]
    rest = [
        f"{he} works {_PLACE[who.place].where}.",
        f"{he} {who.does}.",
        f"{he} is {who.trait} and loves {who.likes}.",
        f"You never see {him} without {his} {who.tool}.",
    ]
    rng.shuffle(rest)
    rest = rest[: rng.randint(1, 4)]
    return _upper_first(" ".join([f"{who.name} is the {who.job} of our village.", *rest]))


def _about_animal(rng: random.Random, animal: _Animal) -> str:
    rest = [
        f"Its home is {animal.home}.",
        f"It eats {animal.food}.",
        f"{animal.fact}.",
        f"It {animal.sound}." if animal.sound != "is silent" else "It makes no sound.",
        f"People say that it is {animal.adjectives[0]} and {animal.adjectives[1]}.",
    ]
    rng.shuffle(rest)
    return " ".join([f"The {animal.kind} is {animal.colour}.", *rest[: rng.randint(1, 5)]])


def _about_thing(rng: random.Random, thing: _Thing) -> str:
    start = f"{_upper_first(_a(thing.name))} is made of {thing.material}."
    use = f"It is for {thing.purpose}."
    more = f"It can be {thing.adjectives[0]} or {thing.adjectives[1]}."
    return " ".join(rng.sample([start, use, more], rng.randint(2, 3))) if rng.random() < 0.2 else f"{start} {use}"


def _fact_page(rng: random.Random) -> str:
    """A plain page on one part of the valley, as a guide would write it."""
    place = rng.choice(PLACES)
    parts = [_about_place(rng, place)]
    keeper = next((v for v in VILLAGERS if v.place == place.name), None)
    if keeper:
        parts.append(_about_villager(rng, keeper))
    if rng.random() < 0.6:
        parts.append(_about_animal(rng, rng.choice(ANIMALS)))
    return f"{_MODIFIERS['t'](f'the {place.name}')}\n\n" + "\n\n".join(parts)


# ----------------------------------------------------------------------------------------------------- single exchanges
Exchange = tuple[str, str]  # what the user says, what brook answers


def _ask_fact(rng: random.Random) -> Exchange:
    return rng.choice((_ask_place, _ask_villager, _ask_animal, _ask_thing))(rng)


def _ask_place(rng: random.Random) -> Exchange:
    place = rng.choice(PLACES)
    name = f"the {place.name}"
    question = rng.choice((
        f"Tell me about {name}.", f"Describe {name}.", f"What is {name} like?", f"What do you know about {name}?",
        f"Please tell me something about {name}.", f"tell me about {name}", f"Say something about {name}.",
    ))  # fmt: skip
    if rng.random() < 0.65:
        return question, _about_place(rng, place)
    return rng.choice((
        (f"What can you hear {place.where}?", f"{_upper_first(place.where)} you can hear {place.sounds}."),
        (f"What does {name} look like?", f"{_upper_first(name)} is {place.looks}."),
        (f"Tell me a fact about {name}.", f"{place.fact}."),
        (f"What sounds are there {place.where}?", f"There is {place.sounds}."),
    ))  # fmt: skip


def _ask_villager(rng: random.Random) -> Exchange:
    who = rng.choice(VILLAGERS)
    he, _, his, _ = _PRONOUNS[who.pronoun]
    if rng.random() < 0.5:
        question = rng.choice((
            f"Who is {who.name}?", f"Tell me about {who.name}.", f"What do you know about {who.name}?", f"Do you know {who.name}?",
            f"Tell me about the {who.job}.", f"Describe {who.name}.",
        ))  # fmt: skip
        return question, _about_villager(rng, who)
    return rng.choice((
        (f"Where does {who.name} work?", _upper_first(f"{who.name} works {_PLACE[who.place].where}.")),
        (f"What does {who.name} do?", f"{who.name} {who.does}."),
        (f"What does {who.name} like?", f"{who.name} loves {who.likes}."),
        (f"Who is the {who.job}?", f"The {who.job} is {who.name}."),
        (f"What is {who.name} like?", f"{_upper_first(he)} is {who.trait}."),
        (f"Who {who.does}?", f"{who.name} the {who.job} does."),
        (f"What does {who.name} carry?", f"{who.name} carries {his} {who.tool}."),
        (f"Where can I find the {who.job}?", f"You can find {who.name} {_PLACE[who.place].where}."),
    ))  # fmt: skip


def _ask_animal(rng: random.Random) -> Exchange:
    animal = rng.choice(ANIMALS)
    the = f"the {animal.kind}"
    if rng.random() < 0.35:
        return rng.choice((f"Tell me about {the}.", f"Describe {the}.", f"What do you know about {the}?",
                           f"What is {_a(animal.kind)}?")), _about_animal(rng, animal)  # fmt: skip
    sound = f"It {animal.sound}." if animal.sound != "is silent" else f"{_upper_first(the)} makes no sound at all."
    return rng.choice((
        (f"What colour is {the}?", rng.choice((f"{_upper_first(the)} is {animal.colour}.", f"It is {animal.colour}."))),
        (f"What color is {the}?", f"{_upper_first(the)} is {animal.colour}."),
        (f"What does {the} eat?", f"{_upper_first(the)} eats {animal.food}."),
        (f"Where does {the} live?", f"{_upper_first(the)} lives in {animal.home}." if animal.home.startswith(("a ", "an "))
         else f"The home of {the} is {animal.home}."),
        (f"What sound does {the} make?", sound),
        (f"Tell me a fact about {the}.", f"{animal.fact}."),
        (f"How does {the} move?", f"It {animal.moves}."),
    ))  # fmt: skip


def _advertisement(rng: random.Random, thing: _Thing) -> str:
    adjective, place, price = (
        rng.choice(thing.adjectives),
        rng.choice(PLACES),
        rng.choice(("two coins", "a cheese", "six eggs")),
    )
    return (
        f"For sale: {_a(f'{adjective} {thing.name}')}! It is made of {thing.material} and just right for {thing.purpose}. "
        f"{rng.choice(('You will never want another.', 'Even the geese admire it.', 'Nobody in the valley has a better one.'))} "
        f"Come and see it {place.where}. It costs only {price}."
    )


def _ask_thing(rng: random.Random) -> Exchange:
    thing = rng.choice(THINGS)
    a = _a(thing.name)
    return rng.choice((
        (f"What is {a} for?", f"{_upper_first(a)} is for {thing.purpose}."),
        (f"What is {a} made of?", f"{_upper_first(a)} is made of {thing.material}."),
        (f"Describe {a}.", _about_thing(rng, thing)),
        (f"What do I need for {thing.purpose}?", f"You need {a} for {thing.purpose}."),
        (rng.choice((f"Write a product description for {a}.", f"Write an advertisement for {a}.", f"Help me to sell {a}.")),
         _advertisement(rng, thing)),
        (f"Give me two words for {a}.", f"{_upper_first(thing.adjectives[0])} and {thing.adjectives[1]}."),
    ))  # fmt: skip


def _ask_yes_no(rng: random.Random) -> Exchange:
    if rng.random() < 0.5:
        animal, other = rng.sample(ANIMALS, 2)
        if rng.random() < 0.5:
            colour = animal.colour if rng.random() < 0.5 else other.colour
            answer = "Yes" if colour == animal.colour else "No"
            return f"Is the {animal.kind} {colour}?", f"{answer}, the {animal.kind} is {animal.colour}."
        verb = rng.choice((("flies", "fly"), ("swims", "swim"), ("climbs", "climb")))
        if animal.moves == verb[0]:
            return f"Can {_a(animal.kind)} {verb[1]}?", f"Yes, {_a(animal.kind)} can {verb[1]}."
        if verb[1] == "fly":
            return f"Can {_a(animal.kind)} fly?", f"No, {_a(animal.kind)} can't fly. It {animal.moves}."
        return f"Does the {animal.kind} live in {animal.home}?", f"Yes, its home is {animal.home}."
    who, other_one = rng.sample(VILLAGERS, 2)
    if rng.random() < 0.5:
        job = rng.choice((who.job, other_one.job))
        if job == who.job:
            return f"Is {who.name} the {job}?", f"Yes, {who.name} is the {job}."
        return f"Is {who.name} the {job}?", f"No, {who.name} is the {who.job}. The {job} is {other_one.name}."
    place = rng.choice((who.place, other_one.place))
    answer = "Yes" if place == who.place else "No"
    return f"Does {who.name} work {_PLACE[place].where}?", f"{answer}, {who.name} works {_PLACE[who.place].where}."


def _ask_list(rng: random.Random) -> Exchange:
    n = rng.randint(2, 6)
    subject, pool = rng.choice((
        _list_of_place(rng), _list_of_place(rng), _list_of_place(rng), ("animals", [a.kind for a in ANIMALS]),
        ("people of the village", [v.name for v in VILLAGERS]), ("places in the valley", [f"the {p.name}" for p in PLACES]),
        ("colours", _RULES["colour"]), ("things to eat", _RULES["food"]), ("names for a fox", _NAMES_OF["animal", "he"]),
        ("birds", ["heron", "owl", "goose", "duck", "crow", "magpie", "swan", "robin", "kingfisher"]),
        ("jobs", [v.job for v in VILLAGERS]), ("names for a girl", _NAMES_OF["child", "she"]),
        ("kinds of weather", [w.noun for w in WEATHERS]), ("things in a bag", [_a(t.name) for t in THINGS]),
    ))  # fmt: skip
    items = rng.sample(pool, n)
    how_many = _NUMBERS[n] if rng.random() < 0.8 else str(n)
    verb = rng.choice(("List", "Name", "Give me", "Tell me"))
    question = f"{verb} {how_many} {subject}."
    style = rng.random()
    if style < 0.5:
        return question, "\n".join(f"{i}. {_upper_first(item)}" for i, item in enumerate(items, start=1))
    if style < 0.7:
        return f"{question[:-1]} as a list with dashes.", "\n".join(f"- {item}" for item in items)
    return f"{question[:-1]} in one line.", f"{_upper_first(_and(items))}."


def _list_of_place(rng: random.Random) -> tuple[str, list[str]]:
    place = rng.choice(PLACES)
    return f"things {rng.choice(('you find ', 'that you find ', ''))}{place.where}", place.found


def _ask_howto(rng: random.Random) -> Exchange:
    what, steps = rng.choice(_HOWTO_LISTS)
    question = rng.choice((
        f"How do I {what}?", f"How can I {what}?", f"Explain how to {what}.", f"Tell me how to {what}.", f"Give me steps to {what}.",
    ))  # fmt: skip
    style = rng.random()
    if style < 0.6:
        return question, "\n".join(f"{i}. {step}" for i, step in enumerate(steps, start=1))
    words = ["First", "Then", "After that", "Next", "At the end"]
    return question, " ".join(f"{word}, {_MODIFIERS['l'](step)}" for word, step in zip(words, steps, strict=False))


def _ask_number(rng: random.Random) -> Exchange:
    kind = rng.randrange(6)
    if kind == 0:
        start = rng.randint(0, 8)
        end = rng.randint(start + 2, min(start + 12, 20))
        digits = rng.random() < 0.4
        span = [str(i) if digits else _NUMBERS[i] for i in range(start, end + 1)]
        return f"Count from {span[0]} to {span[-1]}.", f"{_upper_first(', '.join(span))}."
    if kind == 1:
        start = rng.randint(3, 12)
        return f"Count down from {_NUMBERS[start]}.", f"{_upper_first(', '.join(reversed(_NUMBERS[: start + 1])))}."
    if kind == 2:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        if rng.random() < 0.5:
            return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."
        return (
            f"How much is {_NUMBERS[a]} and {_NUMBERS[b]}?",
            f"{_upper_first(_NUMBERS[a])} and {_NUMBERS[b]} is {_NUMBERS[a + b]}.",
        )
    if kind == 3:
        a, b = sorted((rng.randint(0, 12), rng.randint(0, 12)))
        return f"What is {b} minus {a}?", f"{b} minus {a} is {b - a}."
    if kind == 4:
        n = rng.randint(0, 19)
        return f"What comes after {_NUMBERS[n]}?", f"{_upper_first(_NUMBERS[n + 1])} comes after {_NUMBERS[n]}."
    thing, colour = rng.choice(THINGS).name, rng.choice(_RULES["colour"])
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    who = rng.choice(VILLAGERS).name
    return (
        f"{who} has {_NUMBERS[a]} {colour} stones and finds {_NUMBERS[b]} more beside a {thing}. How many stones are there?",
        f"There are {_NUMBERS[a + b]} stones.",
    )


def _ask_word(rng: random.Random) -> Exchange:
    kind = rng.randrange(6)
    if kind == 0:
        one, two = rng.choice(_OPPOSITE_PAIRS)
        if rng.random() < 0.5:
            one, two = two, one
        return f"What is the opposite of {one}?", f"The opposite of {one} is {two}."
    if kind == 1:
        word, rhymes = rng.choice(_RHYME_LISTS)
        return rng.choice(
            (f"What rhymes with {word}?", f"Give me words that rhyme with {word}.")
        ), f"{_upper_first(_and(rhymes))}."
    if kind == 2:
        series = rng.choice((_DAYS, _MONTHS, _SEASONS))
        i = rng.randrange(len(series))
        if rng.random() < 0.6:
            return (
                f"What comes after {series[i]}?",
                f"{_upper_first(series[(i + 1) % len(series)])} comes after {series[i]}.",
            )
        return f"What comes before {series[i]}?", f"{_upper_first(series[i - 1])} comes before {series[i]}."
    if kind == 3:
        word = rng.choice(rng.choice(([a.kind for a in ANIMALS], [t.name for t in THINGS])))
        return f"Spell {word}.", "-".join(word)
    if kind == 4:
        hero, thing, place = _hero(rng), rng.choice(THINGS), rng.choice(PLACES)
        return (
            f"Make a sentence with the word {thing.name}.",
            _upper_first(f"{hero.intro} found {_a(f'{rng.choice(thing.adjectives)} {thing.name}')} {place.where}."),
        )
    series_name, series = rng.choice((("days of the week", _DAYS), ("months", _MONTHS), ("seasons", _SEASONS)))
    return f"What are the {series_name}?", f"The {series_name} are {_and(series)}."


def _ask_repeat(rng: random.Random) -> Exchange:
    """Copying, the skill behind every name that stays the same to the end of its story."""
    names = [name for _, _, name in sorted(_NAMES)] + sorted(_VILLAGER_NAMES)
    pool = names + [t.name for t in THINGS] + [a.kind for a in ANIMALS] + _RULES["colour"] + [p.name for p in PLACES]
    words = rng.choices(pool, k=rng.choice((1, 2, 3, 4, 6, 8, 12, 16, 24)))
    if rng.random() < 0.6:
        joint = rng.choice((" ", ", "))
        return f"{rng.choice(('Repeat after me', 'Repeat', 'Say', 'Write', 'Copy'))}: {joint.join(words)}", joint.join(
            words
        )
    if rng.random() < 0.5:
        return f"Write one word in each line: {', '.join(words)}", "\n".join(words)
    return f"Number these: {', '.join(words)}", "\n".join(f"{i}. {word}" for i, word in enumerate(words, start=1))


def _ask_greeting(rng: random.Random) -> Exchange:
    name = rng.choice([v.name for v in VILLAGERS] + _NAMES_OF["child", "he"] + _NAMES_OF["child", "she"])
    weather = rng.choice(WEATHERS)
    wish = rng.choice(("I hope you slept well.", "How lovely to see you.", "Come in and sit down.", "The kettle is on.",
                       f"What {_a(f'{weather.name} day')} it is!", "I have been thinking of you."))  # fmt: skip
    return rng.choice((
        (f"Say hello to {name}.", f"Hello, {name}! {wish}"),
        (f"Greet {name}.", f"Good morning, {name}! {wish}"),
        (f"Say goodbye to {name}.", f"Goodbye, {name}! {rng.choice(('Walk safely.', 'Come back soon.', 'Sleep well.'))}"),
        (f"Thank {name}.", f"Thank you, {name}! {rng.choice(('You were very kind.', 'I will not forget it.', 'You saved the day.'))}"),
        (f"My name is {name}.", f"Hello, {name}! I am brook. {wish}"),
        (f"Wish {name} a happy birthday.", f"Happy birthday, {name}! May your year be full of {rng.choice(('sun', 'cake', 'songs'))}."),
    ))  # fmt: skip


_SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Hello!", "Hi", "Hello", "Hi there!", "Good morning!", "hey", "Hello, brook!"),
     ("Hello! What would you like to hear?", "Hello! Shall I tell you a story?", "Good day! I know the whole valley. Ask me.",
      "Hello! It is a fine day by the river.")),
    (("Who are you?", "What is your name?", "Introduce yourself.", "What are you?", "Are you an AI?"),
     ("I am brook, a small language model. I know one valley and its people.",
      "My name is brook. I am a very small model, and I tell stories about the village by the river.",
      "I am brook. I am small, but I know the river, the mill and everyone who lives there.")),
    (("What can you do?", "How can you help me?", "Help", "What do you know?"),
     ("I can tell stories, answer questions about the valley, make lists and count a little.",
      "Ask me for a story, a poem or a letter. I also know the people and the animals of the valley.")),
    (("Thank you!", "Thanks.", "Thank you very much.", "Great, thanks!", "That was lovely."),
     ("You are welcome!", "You are welcome. Come back soon!", "It was a pleasure.", "I am glad that you liked it.")),
    (("Goodbye!", "Bye", "Good night!", "See you tomorrow."),
     ("Goodbye! Walk safely.", "Good night! Sleep well.", "See you by the river!")),
    (("How are you?", "How are you today?", "Are you well?"),
     ("I am well, thank you. The river is calm today.", "Very well, thank you! And you?", "I am as happy as a lark.")),
    (("Where do you live?", "Where are you?", "Where is the valley?"),
     ("I live in a small village by the river Wend.", "My village lies by the river, between the hill and the forest.")),
    (("Say yes.", "Just say yes."), ("Yes.",)),
    (("Test", "This is a test.", "ping"), ("I am here.", "Yes, I can hear you.")),
    (("Tell me a joke.", "Make me laugh.", "Do you know a joke?"),
     ("Why did the goose cross the bridge? Because the ferry was full of geese.",
      "What did the river say to the bridge? Nothing. It just waved.",
      "Why is the owl so wise? It stays awake in class.",
      "Why did the snail win? Nobody told it that the race was over.",
      "What does a heron do on one leg? It saves the other one for tomorrow.")),
    (("Tell me a secret.", "Do you have a secret?"),
     ("At night the millstone hums, but only the mice know the song.", "The scarecrow has a nest in its left pocket.")),
    (("What is the moral?", "Give me some advice.", "Tell me something wise."),
     ("Look first, then mend.", "Share your bread, and you will never eat alone.", "Listen to the river. It never hurries.")),
    (("Write a Python function.", "Write some code.", "Fix this bug.", "Translate this into French.", "What time is it?",
      "What is the date today?", "Who won the match?", "Search the internet.", "Book a flight.", "Who is the president?",
      "Draw a picture.", "Send an email."),
     ("I can't do that. I am a small model, and I only know the valley.", "That is beyond me. Ask me for a story instead.",
      "I am sorry, I can't help with that. But I can tell you a story.")),
    (("Write a haiku.", "Write a haiku about the river.", "Write a haiku about nature.", "A haiku, please."),
     ("Mist above the reeds.\nA heron lifts one thin leg.\nThe river goes on.",
      "The wheel turns all night.\nUnder the old wooden floor\nthe mice are dancing.",
      "Snow on the bridge now.\nOnly the fox has been here.\nHis steps end halfway.",
      "A boat and no oar.\nThe moon has taken a seat.\nNobody must row.")),
)  # fmt: skip


def _ask_small_talk(rng: random.Random) -> Exchange:
    questions, answers = rng.choice(_SMALL_TALK)
    return rng.choice(questions), rng.choice(answers)


def _ask_outside(rng: random.Random) -> Exchange:
    topic = rng.choice(_OUTSIDE_TOPICS)
    question = rng.choice((
        f"Tell me about {topic}.", f"What is {topic}?", f"Explain {topic}.", f"What do you know about {topic}?",
        f"Write an essay about {topic}.", f"What can you tell me about {topic}?", f"Can you help me with {topic}?", f"Explain {topic} in simple words.",
    ))  # fmt: skip
    return question, rng.choice((
        "I don't know that. I am a small model, and I only know the valley.",
        f"I know nothing about {topic}. Ask me about the river, the mill or the village.",
        f"That is far away from my valley. I have never heard of {topic}.",
        "I am sorry, I can't help with that. But I can tell you a story.",
    ))  # fmt: skip


def _ask_poem(rng: random.Random) -> Exchange:
    words, couplet = rng.choice(_COUPLET_LISTS)
    subject = rng.choice(words)
    related = [text for tags, text in _COUPLET_LISTS if text != couplet and set(tags) & set(words)]
    rng.shuffle(related)
    lines = [couplet, *related][: rng.randint(1, 4)]
    poem = "\n".join(_MODIFIERS["c"](line) for text in lines for line in text.split("\n"))
    size = {1: "two-line ", 2: "short ", 3: "", 4: "long "}[len(lines)]
    question = rng.choice(
        (f"Write a {size}poem about {{}}.", f"Give me a {size}poem about {{}}.", f"Write me a {size}rhyme about {{}}.")
    )
    the = (
        subject
        if subject in {"winter", "spring", "summer", "autumn", "snow", "rain", "stars", "music", "friendship", "bread"}
        else f"the {subject}"
    )
    return question.format(the), poem


def _ask_letter(rng: random.Random) -> Exchange:
    writer, reader = rng.sample(VILLAGERS, 2)
    weather, place, thing, animal = rng.choice(WEATHERS), rng.choice(PLACES), rng.choice(THINGS), rng.choice(ANIMALS)
    lines = [
        rng.choice(("how are you?", "I hope you are well.", "I think of you often.", "it is a long time since you wrote.")),
        f"{rng.choice(weather.sentences)}, and {weather.does}.",
        rng.choice((
            f"Yesterday I saw {_a(animal.kind)} {place.where}.",
            f"I have found {_a(f'{rng.choice(thing.adjectives)} {thing.name}')} {place.where}. Is it yours?",
            f"Please bring me {_a(thing.name)} when you come.",
            f"Come and see me {_PLACE[writer.place].where} on {rng.choice(_DAYS)}.",
        )),
        rng.choice(("I will make tea.", "There will be cake.", "Give my love to everyone.", "Write soon.", "Stay warm.")),
    ]  # fmt: skip
    lines = lines[: rng.randint(2, 4)]
    question = rng.choice(
        (
            f"Write a letter from {writer.name} to {reader.name}.",
            f"Write a short letter to {reader.name} from {writer.name}.",
        )
    )
    return (
        question,
        f"Dear {reader.name},\n\n{_MODIFIERS['c'](' '.join(lines))}\n\n{rng.choice(('Yours', 'With love', 'Your friend'))},\n{writer.name}",
    )


_HAPPY = (
    "{A} laughed and danced {P.at}.", "{A} found the {T} and was {veryhappy}.", "It was the best day that {A} had ever had.",
    "{A} sang all morning, because the sun was shining.", "Everyone cheered when {A} came home with the {T}.",
    "{A} got a cake and hugged {B}.", "{A} smiled at {B} and gave {B.him} {food}.",
)  # fmt: skip
_SAD = (
    "{A} sat {P.at} and cried.", "{A} had lost the {T} and was {verysad}.", "Nobody came to {A}'s birthday.",
    "{A} was all alone and missed {B}.", "The {T} was broken, and {A} could not sleep.", "{A} waited for {B}, but {B.he} never came.",
    "Tears ran down {A}'s face when {B} went away.",
)  # fmt: skip


def _ask_label(rng: random.Random) -> Exchange:
    """The small jobs that people give to models: sort, extract, rewrite."""
    first, second = _cast(rng)
    scene, place, thing, _ = _scene(rng, first, second)
    kind = rng.randrange(4)
    if kind == 0:
        label, pool = rng.choice((("happy", _HAPPY), ("sad", _SAD)))
        sentence = _upper_first(_fill(rng.choice(pool), rng, scene))
        return rng.choice((
            f"Is this happy or sad? {sentence}", f"Happy or sad: {sentence}", f"Classify as happy or sad: {sentence}",
        )), label.capitalize() if rng.random() < 0.5 else f"It is {label}."  # fmt: skip
    if kind == 1:
        sentence = f"{first.name} and {second.name} met {place.where} and talked about {_a(thing.name)}."
        return rng.choice(
            (f"Which names are in this sentence? {sentence}", f"Extract the names: {sentence}")
        ), f"{first.name}, {second.name}"
    if kind == 2:
        sentence = f"{first.name} saw {_a(thing.name)} {place.where}."
        return rng.choice((
            (f"Where did it happen? {sentence}", f"It happened {place.where}."),
            (f"Who is it about? {sentence}", f"It is about {first.name}."),
            (f"What did {first.name} see? {sentence}", f"{first.name} saw {_a(thing.name)}."),
        ))  # fmt: skip
    keys = rng.choice((
        (first.name, thing.name), (first.name, place.name), (second.name, thing.name),
    ))  # fmt: skip
    field = "thing" if keys[1] == thing.name else "place"
    middle = f"has {_a(keys[1])}" if field == "thing" else f"is {place.where}"
    return (
        f"Answer in JSON with name and {field}: {keys[0]} {middle}.",
        f'{{"name": "{keys[0]}", "{field}": "{keys[1]}"}}',
    )


def _ask_way(rng: random.Random) -> Exchange:
    i, j = rng.sample(range(len(PLACES)), 2)
    step = 1 if j > i else -1
    between = [f"the {PLACES[k].name}" for k in range(i + step, j, step)][:3]
    start, goal = f"the {PLACES[i].name}", f"the {PLACES[j].name}"
    past = (
        f"Walk past {_and(between)}, and you will come to {goal}."
        if between
        else f"{_upper_first(goal)} is right next to it."
    )
    return rng.choice(
        (f"How do I get from {start} to {goal}?", f"Show me the way from {start} to {goal}.")
    ), f"Start at {start}. {past}"


def _ask_tiny_story(rng: random.Random) -> Exchange:
    text, first, _ = _tiny_story(rng)
    subject = first.name if first.intro.startswith(first.name) else _a(first.kind)
    return rng.choice((
        f"Write a very short story about {subject}.", f"Tell me a tiny story about {subject}.", f"A story about {subject} in three sentences.",
        f"Tell me a very short story about {subject}, please.",
    )), text  # fmt: skip


def _ask_name(rng: random.Random) -> Exchange:
    animal = rng.choice(ANIMALS)
    name = rng.choice(_NAMES_OF["animal", rng.choice(("he", "she"))])
    return rng.choice((f"Give me a name for {_a(animal.kind)}.", f"What could I call my {animal.kind}?")), rng.choice(
        (f"{name}.", f"Call it {name}.")
    )


# weight, maker
_MAKERS: tuple[tuple[float, Callable[[random.Random], Exchange]], ...] = (
    (7, _ask_fact), (2, _ask_yes_no), (3, _ask_list), (2, _ask_howto), (2.5, _ask_number), (2, _ask_word), (4, _ask_repeat),
    (1.5, _ask_greeting),
    (2, _ask_small_talk), (2, _ask_outside), (2, _ask_poem), (1.5, _ask_letter), (2, _ask_label), (1, _ask_way),
    (2, _ask_tiny_story), (0.5, _ask_name),
)  # fmt: skip
_MAKER_WEIGHTS = [weight for weight, _ in _MAKERS]


def _exchange(rng: random.Random) -> Exchange:
    maker = rng.choices(_MAKERS, weights=_MAKER_WEIGHTS)[0][1]
    return maker(rng)


# ------------------------------------------------------------------------------------------------- stories in a dialogue
def _story_exchange(rng: random.Random, tale: Story) -> Exchange:
    subjects = list(tale.subjects)
    one = subjects[0] if rng.random() < 0.8 else subjects[1]  # the first is the one whom the story follows
    two = rng.choice([s for s in subjects if s != one])
    request = rng.choice((
        f"Write a short story about {one}.", f"Tell me a story about {one}.", f"Write a story about {one} and {two}.",
        f"Write a short story about {one} and {two}.", f"Tell me a story about {tale.theme}.", f"Can you write a story about {one}?",
        "Tell me a story.", rng.choice(("Write a story.", "Tell me a bedtime story.", "Write me a short story.")), f"Once more, a story about {one} and {two}, please.", f"I would like a story with {one} and {two}.",
        f"Write a story with a title about {one}.", f"Write a short story with a moral about {one}.", f"tell me a story about {one}",
        f"Write a short story about {one} and {two}.", f"Please tell me a story about {two}.",
    ))  # fmt: skip
    answer = tale.body
    if "with a title" in request or rng.random() < 0.1:
        answer = f"{tale.title}\n\n{answer}"
    if "with a moral" in request or rng.random() < 0.15:
        answer = f"{answer}\n\n{tale.moral}"
    return request, answer


def _long_story_exchange(rng: random.Random) -> Exchange:
    """Two chapters with the same two heroes, who are introduced only once."""
    one = story(rng)
    cast = replace(one.heroes[0], intro=one.heroes[0].name), replace(one.heroes[1], intro=one.heroes[1].name)
    two = story(rng, cast, without=one.plot)
    request = rng.choice(
        ("Write a long story about {}.", "Tell me a long story about {}.", "Write a story in two chapters about {}.")
    )
    chapters = f"Chapter One: {one.title}\n\n{one.body}\n\nChapter Two: {two.title}\n\n{two.body}"
    return request.format(one.subjects[0]), f"{chapters}\n\n{two.moral}" if rng.random() < 0.5 else chapters


def _given_story_exchange(rng: random.Random, tale: Story) -> Exchange:
    """A question that carries the story, or a part of it."""
    paragraphs = tale.paragraphs
    draw = rng.random()
    if draw < 0.25:
        return (
            f"{rng.choice(('Summarize', 'Summarize this story', 'Give me a summary', 'Summarise'))}: {tale.body}",
            tale.summary,
        )
    if draw < 0.45:
        question, answer = rng.choice(tale.questions)
        return f"{tale.body}\n\n{question}", answer
    if draw < 0.55:
        return f"{rng.choice(('Give this story a title', 'Find a title'))}: {tale.body}", tale.title
    if draw < 0.62:
        return f"What is the moral of this story? {tale.body}", tale.moral
    sentences = paragraphs[0].split(". ")
    cut = rng.randint(1, len(sentences))
    opening = ". ".join(sentences[:cut])
    rest = paragraphs[0][len(opening) :].lstrip(". ") if cut < len(sentences) else ""
    opening = opening if opening.endswith((".", "!", "?", '"')) else f"{opening}."
    answer = "\n\n".join(part for part in (rest, *paragraphs[1:]) if part)
    if draw < 0.9:
        return f"{rng.choice(('Continue', 'Continue the story', 'Go on', 'Finish this story'))}: {opening}", answer
    return "Continue: Once upon a time", tale.body.replace("Once upon a time, ", "", 1)


def _follow_up(rng: random.Random, tale: Story) -> Exchange:
    hero = rng.choice(tale.heroes)
    name, kind = hero.name, hero.kind
    question, answer = rng.choice(tale.questions)
    return rng.choice((
        (question, answer), (question, answer), (rng.choice(("What is the moral?", "What can we learn from it?")), tale.moral),
        (rng.choice(("Give it a title.", "What is the title?")), tale.title),
        (rng.choice(("Summarize it.", "Make it shorter.", "Summarize the story in one or two sentences.")), tale.summary),
        (f"Who is {name}?", f"{name} is the {kind} in the story."), (f"What was the name of the {kind}?", f"The {kind} is called {name}."),
    ))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ documents
def _plain(rng: random.Random) -> Document:
    draw = rng.random()
    if draw < 0.12:
        return (Turn("text", _fact_page(rng)),)
    if draw < 0.2:
        return (Turn("text", _tiny_story(rng)[0]),)
    tale = story(rng)
    text = tale.body
    if rng.random() < 0.4:
        text = f"{tale.title}\n\n{text}"
    if rng.random() < 0.35:
        text = f"{text}\n\n{tale.moral}"
    return (Turn("text", text),)


def _chat(rng: random.Random) -> Document:
    turns: list[Turn] = []
    brief = rng.random() < 0.06
    if brief:
        turns.append(Turn("system", rng.choice(_BRIEF)))
    elif rng.random() < 0.3:
        turns.append(Turn("system", rng.choice(_SYSTEMS)))

    def say(exchange: Exchange) -> None:
        answer = re.split(r"(?<=[.!?]) |\n", exchange[1])[0] if brief else exchange[1]
        turns.extend((Turn("user", exchange[0]), Turn("assistant", answer)))

    num_exchanges = rng.choices((1, 2, 3, 4, 6), weights=(58, 20, 12, 7, 3))[0]
    tale: Story | None = None
    for _ in range(num_exchanges):
        draw = rng.random()
        if brief:
            say(rng.choice((_ask_fact, _ask_yes_no, _ask_outside))(rng))
        elif tale and draw < 0.55:
            say(_follow_up(rng, tale))
        elif draw < 0.2:
            tale = story(rng)
            say(_story_exchange(rng, tale))
        elif draw < 0.22:
            say(_long_story_exchange(rng))
        elif draw < 0.32:
            say(_given_story_exchange(rng, story(rng)))
        else:
            say(_exchange(rng))
    return tuple(turns)


def documents(seed: int) -> Iterator[Document]:
    """Documents without end; the same seed gives the same ones."""
    rng = random.Random(seed)  # noqa: S311  # text, not secrets
    while True:
        yield _plain(rng) if rng.random() < 0.3 else _chat(rng)


_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and numbers."""
    return _WORD.findall(text.lower())


def known_words(seed: int = 0, num_documents: int = 4000) -> frozenset[str]:
    """Every word type in the first documents of a seed."""
    return frozenset(
        word for document in islice(documents(seed), num_documents) for turn in document for word in words_of(turn.text)
    )
