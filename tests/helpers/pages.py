"""The demo page in a browser: what tests do to it and what it says."""

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from helpers.exports import softmax

READY = (
    "() => document.getElementById('first-time').textContent.includes('ms') || !document.getElementById('error').hidden"
)
LISTEN = """() => document.addEventListener("answered", ({ detail }) => {
    window.answers = Object.fromEntries(Object.entries(detail).map(([name, { data, dims }]) => [name, [...data]]));
    window.shape = detail.attentions.dims;
})"""
FORGET = "() => { window.answers = null; document.getElementById('error').hidden = true; }"
DONE = "() => window.answers || !document.getElementById('error').hidden"
# A drop or a paste of files, each as [name, base64].
GIVE = """([kind, files]) => {
    const transfer = new DataTransfer();
    for (const [name, content] of files) {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name));
    }
    const event = kind === "drop"
        ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
    document.getElementById("drop").dispatchEvent(event);
}"""


class DemoPage:
    """An open page, and what went wrong on it.

    Args:
        page: Playwright's.

    Attributes:
        elsewhere: addresses other than the loopback's that were asked for, and refused.
        problems: errors of the console.
    """

    def __init__(self, page):
        self.page, self.elsewhere, self.problems = page, [], []
        page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.context.route("**/*", self._on_loopback)

    def _on_loopback(self, route):
        address = urlsplit(route.request.url)
        if address.scheme == "file" or address.hostname in ("localhost", "127.0.0.1"):
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def open(self, address: str):
        """Wait until the model is loaded, or an error is shown."""
        self.page.goto(address)
        self.page.wait_for_function(READY)
        self.page.evaluate(LISTEN)

    @property
    def error(self) -> str | None:
        """What the page says is wrong."""
        alert = self.page.locator("#error")
        return alert.inner_text() if alert.is_visible() else None

    def text(self, name: str) -> str:
        """Of an element, by its id."""
        return self.page.locator(f"#{name}").inner_text()

    @contextlib.contextmanager
    def answered(self) -> Iterator[dict]:
        """The outputs, flat, and `probabilities`, after what is done in the block; empty if the page refuses."""
        self.page.evaluate(FORGET)
        outputs: dict = {}
        yield outputs
        self.page.wait_for_function(DONE)
        found = self.page.evaluate("() => window.answers") or {}
        outputs.update({name: np.array(values) for name, values in found.items()})
        if found:
            outputs["probabilities"] = softmax(outputs["logits"])

    def give(self, *files: tuple[str, bytes], kind: str = "drop") -> dict:
        """Drop or paste files, (name, bytes) each."""
        encoded = [[name, base64.b64encode(content).decode()] for name, content in files]
        with self.answered() as outputs:
            self.page.evaluate(GIVE, [kind, encoded])
        return outputs

    def choose(self, path: Path) -> dict:
        """A file by the button."""
        with self.answered() as outputs, self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Choose a file").click()
            chooser.value.set_files(path)
        return outputs
