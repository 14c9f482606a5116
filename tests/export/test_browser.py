"""The demo page in Chromium: Python's answers, one line for what is no photo, nothing asked of other hosts."""

import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.exports import ANIMALS
from helpers.images import encode, picture
from helpers.odd_images import BROKEN, JPEGS, LOSSLESS
from helpers.page_server import BROWSER, ISOLATION, NODE_PACKAGES, find_chromium, find_package, serve
from helpers.pages import DemoPage

from modeling_deit_distill.analysis import attention_maps
from modeling_deit_distill.data.decoding import decode_image
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.export.browser import write_browser
from modeling_deit_distill.export.page import (
    FROM_CDN,
    PACKAGE,
    RUNTIME_FILES,
    Description,
    place_runtime,
    write_demo,
    write_page,
)
from modeling_deit_distill.export.photograph import preprocessing_of
from modeling_deit_distill.export.precisions import Source

CHROMIUM, RUNTIME = find_chromium(), find_package(PACKAGE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here; install one, or name it by {BROWSER}"),
    pytest.mark.skipif(RUNTIME is None, reason=f"no {PACKAGE}: name a folder of npm packages by {NODE_PACKAGES}"),
]
PHOTO = encode(picture(90, 60))["bytes"]
# What browsers other than Safari do not read.
TIFF = [name for name in LOSSLESS if name.startswith("tiff")]
# Chromium forgets the colour of a palette's entry that is wholly transparent: black is what it gives.
CLEAR_PALETTE = ["png, transparent palette", "png, half-transparent palette"]
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def source(tiny_model):
    return Source(tiny_model(id2label=ANIMALS, num_hidden_layers=1), evaluation_processor(32))


@pytest.fixture(scope="module")
def demo_folder(source, tmp_path_factory):
    """`demo_folder(runtime, examples)`: a new folder with two precisions and the page. They are exported once."""
    graphs = tmp_path_factory.mktemp("graphs")
    exported = write_browser(source, graphs, "animals", ("fp32", "int8"))
    description = Description("Five animals", list(ANIMALS.values()), exported, preprocessing_of(source.processor))

    def make(runtime: str = str(RUNTIME), examples=()) -> Path:
        folder = tmp_path_factory.mktemp("demo")
        shutil.copytree(graphs / "onnx", folder / "onnx")
        write_page(folder, description, examples, place_runtime(runtime, folder))
        return folder

    return make


@pytest.fixture(scope="module")
def vendored(demo_folder):
    """The page with all that it needs in its folder."""
    return demo_folder(examples=[(picture(80, 60), "cat"), (picture(60, 80), None)])


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """`new_page(**options)`: a page of a context of its own."""
    contexts = []

    def make(**options) -> DemoPage:
        contexts.append(chromium.new_context(**options))
        return DemoPage(contexts[-1].new_page())

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_page, vendored):
    """The page, its model loaded; no test leaves errors on its console or asks other hosts."""
    demo = new_page()
    with serve(vendored) as address:
        demo.open(address)
        yield demo
    assert demo.elsewhere == []
    assert demo.problems == []


@torch.inference_mode()
def in_python(source, encoded: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (classes,) and attention (tokens, rows, columns) by PyTorch."""
    pixel_values = source.processor(decode_image({"bytes": encoded, "path": None}), return_tensors="pt")["pixel_values"]
    source.model.set_attn_implementation("eager")
    output = source.model(pixel_values, output_attentions=True)
    maps = attention_maps(output.attentions, (4, 4), 1 + source.model.config.use_distillation_token)[0]
    return output.logits[0].softmax(dim=0).numpy(), maps.numpy()


def check_still_answers(demo, source):
    """A photo is answered, and no error stays."""
    outputs = demo.give(("photo.png", PHOTO))
    np.testing.assert_allclose(outputs["probabilities"], in_python(source, PHOTO)[0], atol=0.01)
    assert demo.error is None


def test_a_dropped_photo_is_answered_as_in_python(page, source):
    outputs = page.give(("photo.png", PHOTO))
    probabilities, maps = in_python(source, PHOTO)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=0.01)
    np.testing.assert_allclose(outputs["attentions"], maps.flatten(), atol=1e-3)
    best = probabilities.argmax()
    assert page.text("result-heading") == f"{ANIMALS[best]}, {100 * probabilities[best]:.1f} %"
    assert page.page.locator("#answers li").count() == 5
    assert page.page.locator("#pictures canvas").count() == 3
    assert "Class head" in page.text("heads") and "Distillation head" in page.text("heads")
    assert "ms" in page.text("time")


def test_a_pasted_and_a_chosen_file_are_answered(page, source, tmp_path):
    expected, path = in_python(source, PHOTO)[0], tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    for outputs in (page.give(("photo.png", PHOTO), kind="paste"), page.choose(path), page.choose(path)):
        np.testing.assert_allclose(outputs["probabilities"], expected, atol=0.01)


def test_an_example_is_answered_beside_its_true_class(page):
    for name, truth in {"Example 1: cat": "True class: cat", "Example 2": None}.items():
        with page.answered() as outputs:
            page.page.get_by_role("button", name=name, exact=True).click()
        assert outputs["probabilities"].shape == (5,)
        shown = page.page.locator("#truth")
        assert not shown.is_visible() if truth is None else shown.inner_text().startswith(truth)


def test_the_camera_gives_a_photo(page):
    page.page.get_by_role("button", name="Camera").click()
    page.page.wait_for_function("() => document.getElementById('video').videoWidth > 0")
    with page.answered() as outputs:
        page.page.get_by_role("button", name="Take the picture").click()
    assert outputs["probabilities"].sum() == pytest.approx(1)
    assert not page.page.locator("#viewfinder").is_visible()


def test_photos_of_all_formats_are_read_as_in_python(page, source):
    for name, (encoded, _) in {**JPEGS, **LOSSLESS}.items():
        outputs = page.give((f"{name}.file", encoded["bytes"]))
        if name in TIFF:
            assert outputs == {} and "is no image that this browser reads" in page.error, name
            continue
        if name in CLEAR_PALETTE:
            assert outputs["probabilities"].shape == (5,)
            continue
        expected = in_python(source, encoded["bytes"])[0]
        np.testing.assert_allclose(outputs["probabilities"], expected, atol=0.01, err_msg=name)


def with_alpha(image: PIL.Image.Image, alpha: np.ndarray) -> bytes:
    image = image.convert("RGB")
    image.putalpha(PIL.Image.fromarray(alpha.astype(np.uint8)))
    return encode(image)["bytes"]


def test_alpha_is_dropped_unless_it_alone_has_the_shape(page, source):
    row = np.arange(60)
    stripes = np.repeat(255 * (row // 20 % 2), 90).reshape(60, 90)
    pictures = {
        "coloured": with_alpha(picture(90, 60), stripes),
        "black logo": with_alpha(PIL.Image.new("RGB", (90, 60)), stripes),
        "white logo": with_alpha(PIL.Image.new("RGB", (90, 60), "white"), stripes),
    }
    for name, encoded in pictures.items():
        outputs = page.give((f"{name}.png", encoded))
        expected = in_python(source, encoded)[0]
        np.testing.assert_allclose(outputs["probabilities"], expected, atol=0.01, err_msg=name)
    assert page.give(("nothing.png", with_alpha(PIL.Image.new("RGB", (90, 60)), np.zeros((60, 90))))) == {}
    assert "transparent everywhere" in page.error


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="50" height="50"><rect width="20" height="20"/></svg>'
REFUSED = {
    "text.txt": (b"no photo", "is no image"),
    "empty.jpg": (b"", "is empty"),
    "one.png": (encode(PIL.Image.new("RGB", (1, 1)))["bytes"], "1 × 1 pixels"),
    "strip.png": (encode(PIL.Image.new("RGB", (6000, 10)))["bytes"], "a strip"),
    "drawing.svg": (SVG, "is no image|SVG"),
    "cut.jpg": (encode(picture(90, 60), "JPEG")["bytes"][:1000], "end is missing"),
    "large.png": (encode(PIL.Image.new("1", (12_000, 10_100)))["bytes"], "more than the 120 megapixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photo_is_refused_in_one_line(page, source, name):
    content, reason = REFUSED[name]
    assert page.give((name, content)) == {}
    assert re.search(reason, page.error) and "\n" not in page.error and page.error.endswith(".")
    assert not page.page.locator("#result").is_visible()
    check_still_answers(page, source)


def test_whatever_python_refuses_is_refused(page, source):
    for name, (content, _) in BROKEN.items():
        if not name.startswith("tiff"):
            assert page.give((name, content)) == {}, name
            assert "\n" not in page.error
    check_still_answers(page, source)


def test_one_file_at_a_time(page, source):
    assert page.give(("a.png", PHOTO), ("b.png", PHOTO)) == {}
    assert page.error == "2 files were dropped. Give one photo at a time."
    assert page.give() == {}
    assert page.error == "What was dropped holds no file. Give one photo at a time."
    check_still_answers(page, source)


def test_a_photo_of_a_hundred_megapixels_is_answered_or_refused(page, source):
    photo = encode(picture(90, 60).resize((12_000, 8_340)), "JPEG", quality=50)["bytes"]
    outputs = page.give(("large.jpg", photo))
    if page.error is None:
        np.testing.assert_allclose(outputs["probabilities"], in_python(source, photo)[0], atol=0.02)
    else:
        assert "\n" not in page.error
    check_still_answers(page, source)


def test_another_precision_answers_the_same_photo(page, source):
    page.give(("photo.png", PHOTO))
    with page.answered() as outputs:
        page.page.get_by_label("Precision").select_option(index=1)
    np.testing.assert_allclose(outputs["probabilities"], in_python(source, PHOTO)[0], atol=0.05)
    assert page.text("agreement") == "not measured"


@pytest.mark.parametrize("isolated", [False, True])
def test_threads_as_the_headers_allow(new_page, vendored, source, isolated):
    demo = new_page()
    with serve(vendored, ISOLATION if isolated else None) as address:
        demo.open(address)
        check_still_answers(demo, source)
        cores = demo.page.evaluate("() => Math.min(navigator.hardwareConcurrency, 4)")
        assert demo.text("threads").split()[0] == (str(cores) if isolated else "1")
        assert demo.elsewhere == demo.problems == []


@pytest.mark.parametrize("isolated", [False, True])
def test_the_runtime_from_the_cdn(new_page, demo_folder, source, isolated):
    demo = new_page()
    # In place of the CDN, with the headers that it sends.
    headers = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    demo.page.context.route(
        f"{FROM_CDN.folder}*",
        lambda route: route.fulfill(path=RUNTIME / "dist" / route.request.url.rpartition("/")[2], headers=headers),
    )
    with serve(demo_folder("cdn"), ISOLATION if isolated else None) as address:
        demo.open(address)
        check_still_answers(demo, source)
        assert demo.elsewhere == demo.problems == []


def test_without_the_cdn_the_page_says_so(new_page, demo_folder):
    demo = new_page()
    with serve(demo_folder("cdn")) as address:
        demo.open(address)
        assert demo.error.startswith(f"onnxruntime-web could not be loaded from {FROM_CDN.folder}")
        assert demo.elsewhere == [FROM_CDN.folder + RUNTIME_FILES[0]]


def test_a_missing_model_file_is_named_and_another_one_answers(new_page, demo_folder):
    demo, folder = new_page(), demo_folder()
    (folder / "onnx" / "model.onnx").unlink()
    with serve(folder) as address:
        demo.open(address)
        assert demo.error.startswith("onnx/model.onnx could not be loaded (404")
        demo.page.get_by_label("Precision").select_option(index=1)
        demo.page.wait_for_function("() => document.getElementById('first-time').textContent.includes('ms')")
        assert demo.error is None
        assert demo.give(("photo.png", PHOTO))["probabilities"].shape == (5,)


def test_a_model_file_of_another_length_is_named(new_page, demo_folder):
    demo, folder = new_page(), demo_folder()
    (folder / "onnx" / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with serve(folder) as address:
        demo.open(address)
        assert re.fullmatch(r"onnx/model.onnx has 43 bytes where \d+ are expected\. .*", demo.error)


def test_opened_as_a_file_the_page_names_a_server(new_page, vendored):
    demo = new_page()
    demo.page.goto((vendored / "index.html").as_uri())
    notice = demo.page.locator("#not-started")
    notice.wait_for(state="visible")
    assert "python -m http.server" in notice.inner_text()


def test_without_webassembly_the_page_says_so(new_page, vendored):
    demo = new_page()
    demo.page.add_init_script("delete globalThis.WebAssembly")
    with serve(vendored) as address:
        demo.open(address)
        assert demo.error.startswith("This browser has no WebAssembly.")


def test_a_browser_that_hides_pixels_is_warned(new_page, vendored):
    demo = new_page()
    demo.page.add_init_script(
        "const read = CanvasRenderingContext2D.prototype.getImageData;"
        "CanvasRenderingContext2D.prototype.getImageData = function (...place) {"
        "  const image = read.apply(this, place); image.data[0] ^= 1; return image; }"
    )
    with serve(vendored) as address:
        demo.open(address)
        assert demo.give(("photo.png", PHOTO)) == {}
        assert "against fingerprinting" in demo.error


def test_by_keyboard_alone(page, tmp_path, source):
    path, keyboard = tmp_path / "photo.png", page.page.keyboard
    path.write_bytes(PHOTO)
    # Without a listener the driver asks for choosers only now, and Chromium may be faster with its own.
    page.page.on("filechooser", lambda chooser: None)
    page.page.bring_to_front()
    keyboard.press("Tab")
    with page.answered() as outputs, page.page.expect_file_chooser() as chooser:
        keyboard.press("Enter")
        chooser.value.set_files(path)
    np.testing.assert_allclose(outputs["probabilities"], in_python(source, PHOTO)[0], atol=0.01)
    reached = []
    for _ in range(4):
        keyboard.press("Tab")
        reached.append(page.page.evaluate("() => document.activeElement.id || document.activeElement.className"))
    assert reached == ["camera", "example", "example", "precision"]
    with page.answered() as outputs:
        keyboard.press("ArrowDown")
    assert page.page.get_by_label("Precision").input_value() == "1" and outputs


CONTRAST = """() => {
    const levels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((level) => {
        const share = level / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    const light = (colour) => levels(colour).reduce((sum, level, at) => sum + level * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : colour;
    };
    return [...document.querySelectorAll("body *")].filter((element) => {
        const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        return hasText && element.checkVisibility();
    }).map((element) => {
        const [low, high] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => a - b);
        return [element.tagName + " " + element.textContent.slice(0, 40), (high + 0.05) / (low + 0.05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_fits_a_phone(new_page, vendored, source, scheme):
    demo = new_page(color_scheme=scheme, viewport={"width": 320, "height": 640})
    with serve(vendored) as address:
        demo.open(address)
        demo.give(("text.txt", b"no photo"))
        contrasts = demo.page.evaluate(CONTRAST)
        check_still_answers(demo, source)
        contrasts += demo.page.evaluate(CONTRAST)
        assert [each for each in contrasts if each[1] < 4.5] == []  # WCAG's AA
        assert len(contrasts) > 20
        assert demo.page.evaluate("() => document.documentElement.scrollWidth") <= 320
        assert demo.page.screenshot(full_page=True)
        assert demo.problems == []


def test_a_model_without_the_distillation_token(new_page, tiny_model, tmp_path):
    model = tiny_model(id2label=ANIMALS, num_hidden_layers=1, use_distillation_token=False, fusion="cls")
    source = Source(model, evaluation_processor(32))
    exported = write_browser(source, tmp_path, "animals", ("fp32",))
    write_demo(source, tmp_path, "animals", exported, place_runtime(str(RUNTIME), tmp_path))
    demo = new_page()
    with serve(tmp_path) as address:
        demo.open(address)
        check_still_answers(demo, source)
        assert demo.page.locator("#pictures canvas").count() == 2
        assert "Distillation" not in demo.text("heads")


def test_what_is_drawn(page):
    part = "async (settings) => (await import('./pictures.js')).seenPart({ width: 400, height: 300 }, settings)"
    # 300 rows become 36 and 400 columns 48, of which the middle 32 are cut: 8.33 pixels to one.
    seen = {"x": 8 * 400 / 48, "y": 2 * 300 / 36, "width": 32 * 400 / 48, "height": 32 * 300 / 36}
    assert page.page.evaluate(part, {"resize": 36, "crop": [32, 32]}) == pytest.approx(seen)
    whole = {"x": 0, "y": 0, "width": 400, "height": 300}
    assert page.page.evaluate(part, {"resize": [32, 48], "crop": None}) == whole
    colour = page.page.evaluate("""async () => {
        const photo = new OffscreenCanvas(64, 64), canvas = document.createElement("canvas");
        Object.assign(photo.getContext("2d"), { fillStyle: "white" }).fillRect(0, 0, 64, 64);
        const part = { x: 0, y: 0, width: 64, height: 64 };
        (await import("./pictures.js")).drawMap(canvas, photo, part, new Float32Array(16).fill(1 / 16), 4, 4);
        return [...canvas.getContext("2d").getImageData(99, 99, 1, 1).data];
    }""")
    # An even share is a third of full brightness, (121, 28, 107) in inferno: 60 % of it over 40 % of white.
    assert colour == pytest.approx([175, 119, 166, 255], abs=1)


def test_large_photos_are_halved_as_long_as_enough_is_left(page):
    read = """async ([width, height, edge]) => {
        const { readPhotograph } = await import("./photograph.js"), canvas = new OffscreenCanvas(width, height);
        canvas.getContext("2d").fillRect(0, 0, width, height);
        const photo = await readPhotograph(await canvas.convertToBlob(), edge);
        return [photo.canvas.width, photo.canvas.height, photo.original.width, photo.original.height];
    }"""
    for given, size in {
        (2000, 2000, 256): (2000, 2000),  # 4 megapixels
        (3001, 2001, 256): (1500, 1000),
        (5002, 4000, 256): (1250, 1000),  # twice, as half would be 5 megapixels
        (3000, 2000, 400): (3000, 2000),  # half would leave 1000 of at least 1200
        (8200, 2000, 400): (4100, 1000),  # above 16 megapixels
    }.items():
        assert page.page.evaluate(read, list(given)) == [*size, *given[:2]], given
