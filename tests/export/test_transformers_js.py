"""transformers.js in Chromium reads the layout as it is, from a folder and from the Hub, and answers as Python does."""

import shutil
from pathlib import Path

import PIL.Image
import pytest
from helpers.exports import smooth
from helpers.hub_server import HubServer, use_hub
from helpers.page_server import BROWSER, NODE_PACKAGES, find_chromium, find_package, serve
from huggingface_hub import HfApi
from transformers import pipeline

CHROMIUM = find_chromium()
LIBRARY = find_package("@huggingface/transformers")
# Its own, where another version lies beside it.
RUNTIME = find_package("@huggingface/transformers/node_modules/onnxruntime-web") or find_package("onnxruntime-web")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here; install one, or name it by {BROWSER}"),
    pytest.mark.skipif(LIBRARY is None, reason=f"no transformers.js: name a folder of npm packages by {NODE_PACKAGES}"),
    pytest.mark.skipif(RUNTIME is None, reason=f"no onnxruntime-web: name a folder of npm packages by {NODE_PACKAGES}"),
]
PAGE = """<!doctype html><title>test</title><script type="module">
import { pipeline, env } from "./transformers.min.js";
env.backends.onnx.wasm.wasmPaths = new URL("runtime/", location).href;
env.localModelPath = "/models/";  // a path: an address would not be looked at
env.useBrowserCache = false;
window.classify = async (model, photos, options, host) => {
    env.allowLocalModels = !host;
    env.allowRemoteModels = !!host;
    if (host) env.remoteHost = host;
    const classifier = await pipeline("image-classification", model, { device: "wasm", ...options });
    const answers = [];
    for (const photo of photos) answers.push(await classifier(photo, { top_k: 5 }));
    return answers;
};
</script>"""
RUNTIME_FILES = ("ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
# Photographs as people have them: higher and wider than long, tiny, smaller than what the model sees, square.
SIZES = [(300, 400), (401, 299), (97, 640), (640, 31), (50, 50), (33, 32), (20, 24), (8, 8), (5, 90), (1, 1)]


@pytest.fixture(scope="module")
def site(layout, tmp_path_factory) -> Path:
    """A folder with a page that has transformers.js, the layout and photographs."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text(PAGE)
    shutil.copy(LIBRARY / "dist" / "transformers.min.js", folder)
    (folder / "runtime").mkdir()
    for name in RUNTIME_FILES:
        shutil.copy(RUNTIME / "dist" / name, folder / "runtime")
    shutil.copytree(layout()[0], folder / "models" / "animals")
    for number, size in enumerate(SIZES):
        smooth(*size).save(folder / f"{2 * number}.png")
        smooth(*size).rotate(180).convert("L").save(folder / f"{2 * number + 1}.png")
    return folder


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def classify(chromium, site):
    """`classify(model, options, host)`: transformers.js's answers to the photographs; no other host is reached."""
    asked_elsewhere = []

    def refuse(route):
        if route.request.url.split("/")[2].split(":")[0] in ("localhost", "127.0.0.1"):
            route.continue_()
        else:
            asked_elsewhere.append(route.request.url)
            route.abort()

    with serve(site) as address:
        page = chromium.new_page()
        page.context.route("**/*", refuse)
        page.goto(address)
        page.wait_for_function("() => window.classify")

        def ask(model: str, options: dict, host: str | None = None) -> list[dict[str, float]]:
            photos = [f"{address}{number}.png" for number in range(2 * len(SIZES))]
            words = "([model, photos, options, host]) => classify(model, photos, options, host)"
            answers = page.evaluate(words, [model, photos, options, host])
            return [{each["label"]: each["score"] for each in answer} for answer in answers]

        yield ask
        page.close()
    assert asked_elsewhere == []


@pytest.fixture(scope="module")
def expected(layout, site) -> list[dict[str, float]]:
    """What Python's pipeline answers."""
    python = pipeline("image-classification", model=str(layout()[0].parent / "checkpoint"), device="cpu", top_k=5)
    images = [PIL.Image.open(site / f"{number}.png") for number in range(2 * len(SIZES))]
    return [{each["label"]: each["score"] for each in python(image)} for image in images]


def largest_difference(found: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """Of two probabilities of a class, over all photographs."""
    pairs = zip(found, expected, strict=True)
    return max(abs(answer[name] - wanted[name]) for answer, wanted in pairs for name in wanted)


def decisions(answers: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> list[str]:
    """The first class of each photograph whose two best ones lie further apart than the tolerance explains.

    Of a student that was not trained some are close to one another.
    """
    best = [sorted(wanted.values(), reverse=True)[:2] for wanted in expected]
    clear = [first - second > 2 * tolerance for first, second in best]
    return [max(answer, key=answer.get) for answer, is_clear in zip(answers, clear, strict=True) if is_clear]


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.01), ("fp16", 0.01), ("q8", 0.03), (None, 0.03)])
def test_from_a_folder(classify, expected, dtype, tolerance):
    answers = classify("animals", {"dtype": dtype} if dtype else {})
    assert largest_difference(answers, expected) < tolerance
    assert decisions(answers, expected, tolerance) == decisions(expected, expected, tolerance)


def test_from_a_branch_of_the_hub(classify, expected, layout, monkeypatch, tmp_path):
    with HubServer(token="hf_token") as server:
        use_hub(monkeypatch, server, tmp_path)
        api = HfApi(server.endpoint, token="hf_token")
        api.create_repo("me/animals")
        api.create_branch("me/animals", branch="browser")
        # transformers.js looks on the main branch whether there is an image processor, and reads that of the revision.
        api.upload_folder(repo_id="me/animals", folder_path=layout()[0].parent / "checkpoint")
        api.upload_folder(repo_id="me/animals", folder_path=layout()[0], revision="browser")
        answers = classify("me/animals", {"dtype": "fp32", "revision": "browser"}, f"{server.endpoint}/")
    assert largest_difference(answers, expected) < 0.01
    assert decisions(answers, expected, 0.01) == decisions(expected, expected, 0.01) != []
