"""What others measured, to be read beside one's own figures.

Reference: the authors' release (github.com/shelhamer/fcn.berkeleyvision.org), whose
README has these figures of its files on seg11valid.
"""

from typing import Any

from fcn_jax.evaluation.report import SCORES

SPLIT = "seg11valid"
# Of the released networks, in per cent, in the order of SCORES.
FIGURES = {
    "fcn32s-heavy-pascal": (90.4810, 76.4824, 63.6261, 83.4580),
    "fcn16s-heavy-pascal": (90.9971, 78.0710, 65.0050, 84.2614),
    "fcn8s-heavy-pascal": (91.2212, 77.6146, 65.5126, 84.5445),
    "fcn8s-atonce-pascal": (91.1288, 78.4979, 65.3998, 84.4326),
}


def beside_published(name: str, split: str, figures: dict[str, Any]) -> str:
    """The four figures of a released network beside the published ones.

    Args:
        name: of the network, as in `FIGURES`.
        split: that was evaluated.
        figures: of `fcn_jax.evaluation.report.report`.
    Returns:
        Lines to print; none where nothing was published.
    """
    if name not in FIGURES or split != SPLIT:
        return ""
    lines = [f"{'':<23}{'here':>9}{'published':>11}{'difference':>12}"]
    for (score, title), published in zip(SCORES.items(), FIGURES[name], strict=True):
        here = 100 * (figures[score] or 0.0)
        lines.append(
            f"{title:<23}{here:9.4f}{published:11.4f}{here - published:+12.4f}"
        )
    return "\n".join(lines)
