"""Where does the bundled model live, and how is it made again?

`BROOK` is a folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load as it stands.
`corpus` makes the text, `train_brook` makes the folder from it.
"""

from pathlib import Path
from typing import Final

BROOK: Final[Path] = Path(__file__).parent / "brook"
"""Folder of the bundled model: config, weights (bfloat16), tokenizer, chat template and model card."""
