"""Which options do several commands have?"""

from pathlib import Path
from typing import Annotated, Literal

import typer

TierName = Literal["interactive", "standard", "batch"]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where servers' data, secrets and logs live.  [default: .penstock]")
]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="PENSTOCK_URL", help="The API; that of a running `penstock up` if left out."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="PENSTOCK_API_KEY", help="API key; that of a running `penstock up` if left out."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print job objects as JSON.")]
