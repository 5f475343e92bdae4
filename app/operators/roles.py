"""What may an operator do? Three roles, each of which may all that the one before it may."""

from typing import Literal, get_args

Role = Literal["viewer", "operator", "owner"]
ROLES: tuple[Role, ...] = get_args(Role)


def includes(role: Role, wanted: Role) -> bool:
    """Whether an operator of `role` may do what is open to `wanted`."""
    return ROLES.index(role) >= ROLES.index(wanted)
