"""The web interface as a person meets it: a real Chromium, a real server, real runs on a tiny model."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile

import pytest
from conftest import REPO
from launch import free_port
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from arguments import parse_arguments
from evaluation.answers import stream_answer
from predict import load

pytestmark = pytest.mark.slow
SECONDS = 300  # that anything may take, on a machine with other work
RUN, OTHER = "out/first", "out/other"
STEPS, TOKENS = 16, 16  # of the run; of an answer
COLOURS = ("red", "blue")
ROWS = 24


class Server:
    """`python webui.py` on a free port, and a client without a browser."""

    def __init__(self, root, **environment):
        self.port, self.text = free_port(), root.parent / "webui.txt"
        self.address = f"http://127.0.0.1:{self.port}"
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        words = [sys.executable, str(REPO / "webui.py"), "--root", str(root), "--port", str(self.port)]
        with open(self.text, "ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | environment)

    def wait(self) -> None:
        end = time.monotonic() + SECONDS
        while True:
            try:
                return self.opener.open(self.address).close()
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, self.text.read_text()
                time.sleep(0.2)

    def get(self, path: str, data: bytes | None = None, **headers) -> int:
        try:
            return self.opener.open(urllib.request.Request(self.address + path, data, headers)).status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def root(tmp_path, tiny):
    """A root with a model and the log of another run."""
    folder = tmp_path / "root"
    shutil.copytree(tiny("llava-1.5"), folder / "tiny")
    (folder / OTHER).mkdir(parents=True)
    lines = [{"step": step, "max_steps": 9, "loss": 9 / step, "time": step} for step in range(1, 10)]
    (folder / OTHER / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    yield folder
    if (folder / RUN / "webui_run.json").exists():
        with contextlib.suppress(ProcessLookupError):
            send(folder, signal.SIGKILL)


@pytest.fixture
def chromium():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("these tests drive a Chromium, and there is none: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(chromium, server: Server, requests: list[str], password: str | None = None) -> Page:
    """In a browser of its own, which has no cookies of others."""
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(server.address)
    if password:
        page.locator("input").first.fill("me")
        page.locator("input[type=password]").fill(password)
        page.get_by_role("button", name="Login").click()
    page.locator("#start").wait_for()
    return page


def button(page: Page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def box(page: Page, name: str):
    return page.locator(f"#{name} :is(input, textarea)").first


def see(locator, text: str | re.Pattern) -> None:
    expect(locator).to_contain_text(text, timeout=SECONDS * 1000)


def holds(page: Page, name: str, value: str) -> None:
    expect(box(page, name)).to_have_value(value, timeout=SECONDS * 1000)


def fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("innerWidth === 390 && document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1280, "height": 900})


def send(root, number: signal.Signals) -> None:
    """To the run's process. One that is halted is alive; so the test need not keep pace with it."""
    os.kill(json.loads((root / RUN / "webui_run.json").read_text())["pid"], number)


def command(page: Page) -> str:
    return page.locator(".bar textarea").input_value()


def test_a_person_tunes_a_model(root, tmp_path, chromium):
    (uploads := tmp_path / "uploads").mkdir()
    server, requests = Server(root, TMPDIR=str(uploads)), []
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    lines = [f"{COLOURS[i % 2]}.png,Which colour is picture {i}?,{COLOURS[i % 2]}" for i in range(ROWS)]
    (tmp_path / "mine.csv").write_text("\n".join(["photo,what,reply", *lines]))
    server.wait()
    try:
        page = open_page(chromium, server, requests)
        fill_in(page, tmp_path)
        look_ahead(page)
        reach_all_by_keyboard(page)
        fits_a_phone(page)
        told = command(page)
        with contextlib.chdir(root):  # what the terminal would make of it
            arguments = parse_arguments(shlex.split(told.replace("\\\n", ""))[2:])
        assert (arguments.training.max_steps, arguments.lora.use_lora) == (STEPS, True)

        # start: the page turns to the run; its curve grows; halted at step 5, also after a reload
        page.locator("#start").press("Enter")
        see(page.locator(".badge"), "running")
        wait_for_step(root, 5)
        send(root, signal.SIGSTOP)
        see(page.locator(".run"), re.compile(rf"step \d+ of {STEPS}"))
        page.locator(".plots svg").first.wait_for()
        page.reload()
        tab(page, "Runs")
        see(page.locator(".badge"), "running")
        page.frame_locator("iframe[title='held-out answers']").locator("img").first.wait_for()
        fits_a_phone(page)
        send(root, signal.SIGKILL)
        see(page.locator(".badge"), "interrupted")

        # the page ends, and leaves no uploads; another one, which asks for a password, in another browser
        server.process.terminate()
        assert server.process.wait(SECONDS) == 143 and not [path for path in uploads.rglob("*") if path.is_file()]
        server = Server(root, FINELMM_WEBUI_PASSWORD="sesame", TMPDIR=str(uploads))
        server.wait()
        keep_strangers_out(server, root, tmp_path, uploads)
        page = open_page(chromium, server, requests, "sesame")
        see(page.locator("#message"), "Ready to start")
        assert command(page) == told
        page.locator("#start").click()
        see(page.locator("#message"), "out/first contains a run. Press again")
        tab(page, "Runs")
        see(page.locator(".badge"), "interrupted")
        button(page, "Resume").click()
        see(page.locator(".badge"), "finished")
        log = (root / RUN / "webui.log").read_text()
        assert f"step {STEPS}/{STEPS}" in log and "resum" in log.lower()
        verdict = page.locator("table.runs tr", has_text=RUN).locator("td").nth(2)
        expect(verdict).not_to_be_empty(timeout=SECONDS * 1000)
        see(page.locator("table.runs tr", has_text=RUN), "finished")
        assert verdict.inner_text() in log  # as the terminal says it

        # compare, chat side by side, merge, download
        page.get_by_role("checkbox", name=OTHER).check()
        see(page.locator(".plots"), f"{OTHER}, training")
        merge(page, root)
        chat(page, root, tmp_path)
        fits_a_phone(page)
        assert not {url for url in requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))}
        assert "Traceback" not in server.text.read_text()
    finally:
        server.process.kill()
        server.process.wait()


def fill_in(page: Page, tmp_path) -> None:
    """The form of a short run on data of one's own, with mistakes on the way."""
    see(page.locator("#message"), "Still needed: a model, data, a new output folder.")
    assert not page.locator(".wrong").count()
    page.get_by_text("Devices, engine and further flags").click()
    box(page, "further_flags").fill("--chat_template /etc/hosts")
    see(page.locator("#message"), "--chat_template /etc/hosts leads out of")
    box(page, "further_flags").fill("--adam_beta2 0.95 --logging_steps 1 --save_total_limit 2")
    see(page.locator("#message"), "has its own field")
    box(page, "further_flags").fill("--adam_beta2 0.95")
    page.get_by_label("quick look").click()
    holds(page, "max_steps", "20")
    for name, value in {
        **{"output_dir": RUN, "learning_rate": "3e-3", "per_device_train_batch_size": "none", "save_steps": "3"},
        **{"max_steps": str(STEPS), "gradient_accumulation_steps": "1", "eval_generate": "4"},
    }.items():
        box(page, name).fill(value)
    see(page.locator("#per_device_train_batch_size"), "invalid int value: 'none'")
    box(page, "per_device_train_batch_size").fill("4")
    page.get_by_text("Checkpoints and log").click()
    box(page, "logging_steps").fill("1")
    box(page, "model_id").fill("tiny")  # a folder of the root
    box(page, "model_id").press("Enter")
    holds(page, "model_local_path", "tiny")
    names = ("mine.csv", *(f"{colour}.png" for colour in COLOURS))
    page.locator("#drop input[type=file]").set_input_files([tmp_path / name for name in names])
    see(page.locator(".block.first-row"), "Which colour is picture 0?")
    for menu, name in (("question", "what"), ("answer", "reply"), ("image", "photo")):
        holds(page, f"{menu}_from", name)
    see(page.locator("#message"), "Ready to start")
    assert "--use_lora True" in command(page) and "--adam_beta2 0.95" in command(page)


def look_ahead(page: Page) -> None:
    """Memory; one row by a search; all rows."""
    button(page, "Forecast the memory").click()
    box(page, "search_rows").fill("picture 7?")
    box(page, "search_rows").press("Enter")
    see(page.locator(".log").first, "GB")
    button(page, "Check all rows").click()
    rows = page.frame_locator("iframe[title='Rows as training sees them']")
    see(rows.locator("header, body").first, "1 of 1 rows")
    see(rows.locator("section.card").last, "picture 7?")
    see(page.frame_locator("iframe[title='Check all rows']").locator("h1"), "mine.csv")


def reach_all_by_keyboard(page: Page) -> None:
    """Tab goes to each input and button of the form, which shows that it has the focus and is not hidden by the bar."""
    page.get_by_role("tab", name="Tune", exact=True).focus()
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        name, is_shown, is_hidden = page.evaluate("""() => {
            const it = document.activeElement, at = it.getBoundingClientRect();
            const above = document.elementFromPoint(at.x + at.width / 2, at.y + Math.min(at.height / 2, 20));
            const is_frame = it.tagName === "IFRAME" || it === document.body;
            return [it.closest("[id]")?.id, is_frame || getComputedStyle(it).outlineStyle !== "none",
                    !is_frame && !!above?.closest(".bar") && !it.closest(".bar")];
        }""")
        assert is_shown and not is_hidden, name
        reached.add(name)
        if name == "start":
            break
    parts = {
        "search",
        "model_id",
        "data_path",
        "preset",
        "language_model",
        "bf16",
        "output_dir",
        "search_rows",
        "start",
    }
    ids = set(page.evaluate("names => names.filter(name => document.getElementById(name))", [*parts]))
    assert ids == parts and parts <= reached, parts - reached


def wait_for_step(root, step: int) -> None:
    end, path = time.monotonic() + SECONDS, root / RUN / "log.jsonl"
    while not (path.exists() and f'"step": {step}' in path.read_text()):
        assert time.monotonic() < end, (root / RUN / "webui.log").read_text()
        time.sleep(0.02)


def merge(page: Page, root) -> None:
    page.get_by_text("After a run: merge, serve").click()
    button(page, "Merge").click()
    see(page.locator(".log").last, "Self-check")
    assert (root / f"{RUN}-merged/config.json").is_file()
    button(page, "Pack for download").click()
    with page.expect_download() as download:
        button(page, "Download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {"adapter_model.safetensors", "report.html", "args.yaml"} <= {*archive.namelist()}


def chat(page: Page, root, tmp_path) -> None:
    tab(page, "Chat")
    model, question = box(page, "chat_model"), page.locator("#question textarea")
    model.fill(RUN)
    page.get_by_role("option", name=RUN, exact=True).last.wait_for()
    model.press("Enter")
    page.locator("#side_by_side input").check()
    page.locator("#base").wait_for()
    box(page, "longest").fill(str(TOKENS))
    page.locator("#question input[type=file]").set_input_files(tmp_path / "red.png")
    page.locator("#question button[aria-label*='Remove']").first.wait_for()
    question.fill("What colour do you see?")
    question.press("Enter")
    for side, folder in (("tuned", root / RUN), ("base", root / "tiny")):
        see(
            page.locator(f"#{side} .message.bot").last,
            answer_of(folder, tmp_path / "red.png", "What colour do you see?"),
        )
    model.fill("/usr")
    model.press("Enter")
    question.fill("And now?")
    question.press("Enter")
    for side in ("tuned", "base"):
        see(page.locator(f"#{side} .message.bot").last, "the model /usr leads out of")


def answer_of(model_path, picture, question: str) -> str:
    model, collator = load(str(model_path))
    content = [{"type": "image", "image": Image.open(picture).convert("RGB")}, {"type": "text", "text": question}]
    return "".join(stream_answer(model, collator, [{"role": "user", "content": content}], TOKENS)).strip()


def keep_strangers_out(server: Server, root, tmp_path, uploads) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (root / "rows.txt").write_text("private")
    assert server.get("/config") == 401
    wrong, right = b"username=me&password=no", b"username=me&password=sesame"
    assert server.get("/login", wrong) == 400 and server.get("/config") == 401
    assert server.get("/login", right) == 200
    config = json.load(server.opener.open(f"{server.address}/config"))
    assert config["max_file_size"] == 500 * 2**20
    for path in (tmp_path / "secret.txt", root / "rows.txt", REPO / "webui.py", "/etc/hosts", "../secret.txt"):
        for route in ("/gradio_api/file=", "/file=", "/static/", "/gradio_api/file/"):
            assert server.get(f"{route}{path}") in (403, 404), (route, path)
    assert server.get("/", Host="evil.example") == 400
    form = {"Content-Type": "multipart/form-data; boundary=edge"}
    body = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\npicture\r\n--edge--\r\n'
    for origin, code in (("http://evil.example", 403), ("null", 403), (server.address, 200)):
        assert server.get("/gradio_api/upload", body, Origin=origin, **form) == code
    assert len(list(uploads.glob("finelmm-webui-*/*/a.png"))) == 1
