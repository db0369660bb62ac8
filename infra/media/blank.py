"""Whether there is something in a picture or a sound: asked of a version that is tried, and of a rollout's answers."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLAT: Final = 4  # of 256 levels: a picture with less from dark to bright is of one colour
SILENT: Final = 64  # of 65536 levels: a sound with less from low to high is silent (-60 dB)


def contrast(pixels_HWC: "NDArray[Any]") -> int:
    """Return the levels from a picture's darkest to its brightest, in the channel that has the most."""
    return int((pixels_HWC.max(axis=(0, 1)).astype(int) - pixels_HWC.min(axis=(0, 1))).max())


def swing(levels_T: "NDArray[Any]") -> int:
    """Return the levels from a sound's lowest to its highest; 0 for one without samples."""
    return int(levels_T.max()) - int(levels_T.min()) if len(levels_T) else 0
