"""Who owns `torch.ops.ddf` in this process.

Several copies of this package may be imported together, such as an installed `ddf` and a project's own `mylib.ddf`,
but torch lets only one of them register the operators. The first one does and leaves its name at the namespace; later
copies of the same version call its operators.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent

_ATTRIBUTE = 'owner'  # of torch.ops.ddf: the one object that all copies share


@dataclass
class Owner:
    """The copy whose operators serve the process.

    Attributes:
        version: Its version.
        package: The name it was imported by, such as 'mylib.ddf'.
        folder: Where it lies.
        library: Its registrations, which last as long as this object.
        build_info: What it loaded (`extension.BuildInfo`), None until it did.
    """

    version: str
    package: str
    folder: Path
    library: torch.library.Library
    build_info: Any = None


def owner() -> Owner | None:
    """The copy that registered the operators, which may be this one; None before any did."""
    return vars(torch.ops.ddf).get(_ATTRIBUTE)


def claim(version: str) -> torch.library.Library | None:
    """The library to register the operators with; None where a copy of the same version, or this one, already has.

    Raises:
        ImportError: The operators in this process are those of another version, or not of this package at all.
    """
    present = owner()
    if present is None:
        library = _new_library(version)
        setattr(torch.ops.ddf, _ATTRIBUTE, Owner(version, __package__ or '', FOLDER, library))
        return library
    if present.version != version:
        raise ImportError(
            f'ddf {version} ({FOLDER}) cannot be imported: ddf {present.version} ({present.folder}) already is, and '
            'one process holds the operators of one version only. Bring both to the same version, or import only one'
        )
    return None


def _new_library(version: str) -> torch.library.Library:
    try:
        return torch.library.Library('ddf', 'DEF')
    except RuntimeError as error:
        raise ImportError(
            f'ddf {version} ({FOLDER}) cannot be imported: another package, or an older copy of this one, has '
            f'registered torch.ops.ddf in this process. Import only one of the two. torch says: {error}'
        ) from error
