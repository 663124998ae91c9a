"""A web page that segments photographs, by gradio."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fcn_jax.data.images import read_image, read_size
from fcn_jax.inference.probabilities import probabilities
from fcn_jax.markup import Html, element, join, table
from fcn_jax.network import Network
from fcn_jax.visualize import colorize, overlay, save_labels

_MAX_BYTES = 50 * 2**20  # Of an upload.
_MAX_PIXELS = 2**24  # Of an image.
_OPACITY = 0.5


class Segmented(NamedTuple):
    """An image with its labels and the probability of each label.

    The image is [H, W, 3] uint8, the labels [H, W] int32, the confidence [H, W] float32
    in [0, 1].
    """

    image: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray


def segment_file(net: Network, path: str | Path) -> Segmented:
    """Segment an uploaded file.

    Args:
        net: a network of RGB images.
        path: of the file, whatever it holds.

    Raises:
        ValueError: if the file is not an image, or is too large for the page.
    """
    name = Path(path).name
    _check_pixels(path, name)
    image = read_image(path, name=name)
    shares = probabilities(net, image)
    return Segmented(image, shares.argmax(-1).astype(np.int32), shares.max(-1))


def _check_pixels(path: str | Path, name: str) -> None:
    """Raise ValueError for an image that is too large, before it is decoded."""
    height = width = 0
    # `read_image` names the fault of a file that has no size.
    with contextlib.suppress(ValueError):
        height, width = read_size(path)
    if height * width > _MAX_PIXELS:
        raise ValueError(
            f"{name}: {height}x{width} pixels are above {_MAX_PIXELS}, the most that "
            "this page takes: make the image smaller"
        )


def area_legend(net: Network, labels: np.ndarray) -> Html:
    """Return a table of the classes in labels, those of the largest area first."""
    counts = np.bincount(labels.ravel(), minlength=net.model.num_classes)
    colors = colorize(np.arange(len(counts)), net.palette).tolist()
    rows = []
    for i in np.argsort(-counts, kind="stable"):
        if counts[i]:
            red, green, blue = colors[i]
            color = f"background: rgb({red}, {green}, {blue}); border: 1px solid grey"
            box = "display: inline-block; width: 1em; height: 1em; margin-right: 0.5em"
            swatch = element("span", style=f"{color}; {box}")
            share = f"{100 * counts[i] / labels.size:.2f} %"
            rows.append([join(swatch, net.names[i]), share])
    return table(["Class", "Area"], rows)


def serve_demo(
    net: Network,
    *,
    examples: Sequence[tuple[str, np.ndarray]] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        net: a network of RGB images.
        examples: names and images, [H, W, 3] uint8, that the page offers.
        host: the address to listen on.
        port: the port.

    Raises:
        ValueError: if the network takes other images, or gradio is not installed.
        OSError: if the port is in use.
    """
    if net.model.in_channels != 3:
        raise ValueError(
            f"the network takes {net.model.in_channels} channels, and photographs have "
            "3: use python -m fcn_jax predict with --extra"
        )
    with tempfile.TemporaryDirectory() as folder:
        # Read when gradio is imported. It keeps uploads in the folder.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = folder
        gradio = _import_gradio()
        page = _page(gradio, net, _write_examples(Path(folder), examples), folder)
        # The fonts of this theme are those of the system.
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                ssr_mode=False,
                footer_links=[],
                max_file_size=_MAX_BYTES,
                state_session_capacity=10,
                theme=gradio.themes.Base(**fonts),
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise OSError(
                f"host = {host}, port = {port} cannot be listened on, perhaps because "
                "the port is in use: choose another port"
            ) from error
        print(f"Open http://{host}:{port} in a browser; Ctrl-C ends it", flush=True)
        page.block_thread()


def _import_gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ValueError(
            "the demo page needs gradio, which is not installed: "
            "pip install 'fcn-jax[demo]'"
        ) from error
    return gradio


def _write_examples(
    folder: Path, examples: Sequence[tuple[str, np.ndarray]]
) -> list[tuple[str, str]]:
    """Write images, and return their paths with their names."""
    written = []
    for i, (name, image) in enumerate(examples):
        path = folder / f"example{i}.png"
        Image.fromarray(image).save(path)
        written.append((str(path), name))
    return written


def _page(
    gradio: Any, net: Network, examples: list[tuple[str, str]], folder: str
) -> Any:
    """Return the page as gradio's Blocks."""

    def segment(path: str | None, opacity: float) -> tuple:
        if path is None:
            return None, None, None, "", None
        try:
            found = segment_file(net, path)
        except ValueError as error:
            raise gradio.Error(str(error), duration=None) from error
        mask = Path(tempfile.mkdtemp(dir=folder)) / "mask.png"
        save_labels(mask, found.labels, net.palette)
        gray = np.rint(255 * found.confidence).astype(np.uint8)
        legend = area_legend(net, found.labels)
        return found, mix(found, opacity), gray, legend, str(mask)

    def mix(found: Segmented | None, opacity: float) -> np.ndarray | None:
        if found is None:
            return None
        colors = {"palette": net.palette, "background": net.background}
        return overlay(found.image, found.labels, alpha=opacity, **colors)

    def picture(label: str, elem_id: str) -> Any:
        return gradio.Image(
            label=label,
            format="png",
            interactive=False,
            buttons=["fullscreen"],
            height=320,
            elem_id=elem_id,
        )

    with gradio.Blocks(
        title="FCN", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gradio.Markdown("# Segment a photograph")
        found = gradio.State()
        with gradio.Row():
            with gradio.Column():
                file = gradio.File(label="Photograph", elem_id="photograph")
                if examples:
                    gallery = gradio.Gallery(
                        examples,
                        label="Examples",
                        columns=4,
                        height=190,
                        allow_preview=False,
                        interactive=False,
                        format="png",
                        buttons=[],
                        elem_id="examples",
                    )
                gradio.Markdown("## Classes")
                legend = gradio.HTML(elem_id="legend")
            with gradio.Column():
                mixed = picture("Overlay", "overlay")
                opacity = gradio.Slider(
                    0, 1, _OPACITY, label="Opacity", elem_id="opacity"
                )
                confidence = picture("Confidence: white is certain", "confidence")
                mask = gradio.DownloadButton("Download the mask", elem_id="mask")
        outputs = [found, mixed, confidence, legend, mask]
        file.change(segment, [file, opacity], outputs, api_visibility="private")
        opacity.release(mix, [found, opacity], mixed, api_visibility="private")
        if examples:

            def choose(event: gradio.SelectData) -> str:
                return examples[event.index][0]

            gallery.select(choose, None, file, api_visibility="private")
    return page
