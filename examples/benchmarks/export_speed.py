"""What an export weighs and takes: ONNX files in Python's onnxruntime and in a browser, in each precision.

    python examples/benchmarks/export_speed.py [--size tiny] [--runtime NODE_MODULES] [--json FILE]

From a decoded photograph of 500 × 375 pixels to the answer: resize, crop, normalisation and the model, one image at a
time. The browser is a headless Chromium, driven by Playwright (`pip install playwright`), with onnxruntime-web from
`--runtime`, a folder of npm packages (`npm install onnxruntime-web@VERSION`); without that only Python is measured.
Times are medians. Weights are random: they change neither size nor time.

`ratios`: PyTorch's eager time, image processor included, over each one's.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from modeling_deit_distill.configuration_deit_distill import SIZES
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.errors import InputError
from modeling_deit_distill.export.page import RUNTIME_FILES
from modeling_deit_distill.export.precisions import FILES, Source, answering, write_precisions
from modeling_deit_distill.script import run_script

HEIGHT, WIDTH = 375, 500
BUILD = "onnxruntime-web/dist"
PAGE = """<!doctype html><script type="module">
import * as ort from "./runtime/MODULE";
window.measure = async (file, threads, rounds, height, width) => {
    ort.env.wasm.numThreads = threads;
    const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    const pixels = new ort.Tensor("float32", new Float32Array(3 * height * width).fill(99), [1, 3, height, width]);
    const times = [];
    for (let round = 0; round <= rounds; round++) {
        const began = performance.now();
        await session.run({ pixel_values: pixels }, ["logits"]);
        times.push(performance.now() - began);
    }
    return times.slice(1);
};
</script>"""


def main(arguments: list[str]):
    options = parse_options(arguments)
    torch.manual_seed(0)
    config = DeiTDistillConfig.from_size(options.size, num_labels=1000, image_size=options.image_size)
    source = Source(DeiTDistillForImageClassification(config).eval(), evaluation_processor(options.image_size))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        exported = write_precisions(source, folder, list(FILES), takes_photographs=True)
        milliseconds = {"pytorch": {"eager": pytorch_time(source, options.rounds)}}
        milliseconds |= {each.precision: python_times(folder / each.file, options.rounds) for each in exported}
        if options.runtime:
            for name, times in browser_times(folder, [each.file for each in exported], options).items():
                precision = next(each.precision for each in exported if each.file == name)
                milliseconds[precision] |= times
    megabytes = {each.precision: each.megabytes for each in exported}
    report(milliseconds, megabytes, options)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each")
    parser.add_argument("--runtime", metavar="NODE_MODULES", help="folder of npm packages with onnxruntime-web")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser's program")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args(arguments)
    if options.runtime and (options.chromium is None or not Path(options.runtime, BUILD).is_dir()):
        raise InputError(f"{options.runtime}/{BUILD} is no folder, or there is no chromium; give both, or no --runtime")
    return options


def photograph() -> PIL.Image.Image:
    """Noise, of the median size of ImageNet's photographs."""
    draws = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return PIL.Image.fromarray(draws)


def median_milliseconds(answer: Callable[[], object], rounds: int) -> float:
    """After two calls that do not count."""
    times = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        answer()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[2:])


@torch.inference_mode()
def pytorch_time(source: Source, rounds: int) -> float:
    """Image processor and model, with PyTorch's threads."""
    image = photograph()

    def answer():
        """Logits."""
        return source.model(source.processor(image, return_tensors="pt")["pixel_values"]).logits

    return median_milliseconds(answer, rounds)


def python_times(path: Path, rounds: int) -> dict[str, float]:
    """In onnxruntime on the CPU, with one thread and with all."""
    image, threads = photograph(), {"python, 1 thread": 1, f"python, {torch.get_num_threads()} threads": None}
    answers = {name: answering(path, threads=number) for name, number in threads.items()}
    return {name: median_milliseconds(lambda answer=answer: answer(image), rounds) for name, answer in answers.items()}


def browser_times(folder: Path, files: list[str], options) -> dict[str, dict[str, float]]:
    """In Chromium, with one thread and with two, by file."""
    import http.server
    import threading

    from playwright.sync_api import sync_playwright

    build = Path(options.runtime, BUILD)
    (folder / "runtime").mkdir()
    for name in RUNTIME_FILES:
        shutil.copy(build / name, folder / "runtime")
    (folder / "index.html").write_text(PAGE.replace("MODULE", RUNTIME_FILES[0]))
    handler = isolated(folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        found: dict[str, dict[str, float]] = {file: {} for file in files}
        for file in files:
            for threads in (1, 2):
                page = browser.new_page()  # the number of threads is fixed once the runtime is loaded
                page.goto(f"http://localhost:{server.server_address[1]}/")
                page.wait_for_function("() => window.measure")
                words = [file, threads, options.rounds, HEIGHT, WIDTH]
                times = page.evaluate("(words) => measure(...words)", words)
                found[file][f"browser, {threads} thread{'s' if threads > 1 else ''}"] = statistics.median(times)
                page.close()
        browser.close()
        server.shutdown()
    return found


def isolated(folder: Path):
    """A handler of requests with the headers that give a page threads."""
    import functools
    import http.server

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

        def end_headers(self):
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_):
            """Nothing."""

    return functools.partial(Handler, directory=str(folder))


def report(milliseconds: dict[str, dict[str, float]], megabytes: dict[str, float], options):
    """Print a table and the ratios, and write them."""
    eager = milliseconds["pytorch"]["eager"]
    print(f"pytorch, eager, image processor included: {eager:.1f} ms")
    ratios = {}
    for precision, times in milliseconds.items():
        if precision == "pytorch":
            continue
        listed = ", ".join(f"{name} {each:.1f} ms" for name, each in times.items())
        print(f"{precision:5} {megabytes[precision]:6.2f} MB  {listed}")
        ratios |= {f"{precision}, {name}": round(eager / each, 3) for name, each in times.items()}
    print(json.dumps({"ratios": ratios}))
    if options.json:
        figures = {"milliseconds": milliseconds, "megabytes": megabytes, "ratios": ratios, "options": vars(options)}
        Path(options.json).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    run_script(main)
