"""The card's web application answers as the card's pipeline; Gradio is no dependency, and its Pillow is not ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
from helpers.cards import blocks, card_of
from transformers import pipeline

from modeling_deit_distill.data.evaluation import evaluation_processor

# A folder that `pip install --target FOLDER gradio` has filled.
PACKAGES = os.environ.get("GRADIO_PACKAGES")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(PACKAGES or "", "gradio").is_dir(), reason="name Gradio's folder by GRADIO_PACKAGES"),
]
ASK = """
import json, sys
from gradio_client import Client, handle_file
answers = Client(app.local_url, verbose=False).predict(handle_file(sys.argv[1]), fn_index=0)["confidences"]
print(json.dumps({each["label"]: each["confidence"] for each in answers}))
app.close()
"""


def test_the_web_application_of_the_card(run, tiny_model, tmp_path):
    folder = run()
    tiny_model().save_pretrained(folder)
    evaluation_processor(32).save_pretrained(folder)
    PIL.Image.new("RGB", (50, 40), (200, 30, 90)).save(tmp_path / "image.jpg")
    code = blocks(card_of(folder).text, "python")
    start = next(block for block in code if "trust_remote_code" in block)
    start = start.replace('"me/my-small-deit"', repr(str(folder))).replace('classify("image.jpg")', "")
    serve = next(block for block in code if "gradio" in block)
    assert serve.endswith(".launch()")
    serve = serve.replace("gradio.Interface", "app = gradio.Interface").replace(".launch()", "")
    script = f"{start}\n{serve}\napp.launch(prevent_thread_lock=True, quiet=True)\n{ASK}"
    environment = {**os.environ, "PYTHONPATH": PACKAGES, "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, "-c", script, str(tmp_path / "image.jpg")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    expected = pipeline("image-classification", model=str(folder), device="cpu")(str(tmp_path / "image.jpg"))
    assert found == pytest.approx({each["label"]: each["score"] for each in expected}, abs=1e-5)
