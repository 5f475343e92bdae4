"""Imported before all else by a process that shall be there soon: no look for garbage while it imports, each would go over all of it again.

`app.garbage.collect_seldom` ends that.
"""

import gc

gc.disable()
