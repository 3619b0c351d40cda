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
SECONDS = 90  # that anything may take, on a machine with other work
RUN = "out/first"
PICTURE = "example_data/images/sample/00000.png"
ROWS = 24


class Server:
    """`python webui.py` on a free port."""

    def __init__(self, root, **environment):
        self.root, self.port, self.environment = root, free_port(), environment
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = [sys.executable, str(REPO / "webui.py"), "--root", str(self.root), "--port", str(self.port)]
        with open(self.root.parent / "webui.txt", "ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | self.environment)
        end = time.monotonic() + SECONDS
        while True:
            try:
                return urllib.request.urlopen(self.address)
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, self.log
                time.sleep(0.2)

    @property
    def log(self) -> str:
        return (self.root.parent / "webui.txt").read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def get(self, path: str, data: bytes | None = None, **headers) -> int:
        try:
            return urllib.request.urlopen(urllib.request.Request(self.address + path, data, headers)).status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def root(tmp_path, tiny):
    folder = tmp_path / "root"
    shutil.copytree(tiny("llava-1.5"), folder / "tiny")
    shutil.copytree(REPO / "example_data/images", folder / "example_data/images")
    shutil.copy(REPO / "example_data/sample.json", folder / "example_data")
    yield folder
    record = folder / RUN / "webui_run.json"
    if record.exists():
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


def open_page(chromium, server: Server, requests: list[str] | None = None) -> Page:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(SECONDS * 1000)
    if requests is not None:
        page.on("request", lambda request: requests.append(request.url))
    page.goto(server.address)
    expect(button(page, "Start")).to_be_visible(timeout=SECONDS * 1000)
    return page


def button(page: Page, name: str):
    return page.get_by_role("button", name=name)


def fill(page: Page, name: str, value: str) -> None:
    page.locator(f"#{name} :is(input, textarea)").first.fill(value)


def pick(page: Page, name: str, value: str) -> None:
    """Type into a list and take what it offers."""
    box = page.locator(f"#{name} input").first
    box.click()
    box.fill(value)
    page.get_by_role("option", name=value, exact=True).last.wait_for()
    box.press("Enter")
    box.press("Tab")


def see(locator, text: str | re.Pattern) -> None:
    expect(locator).to_contain_text(text, timeout=SECONDS * 1000)


def steps(page: Page) -> int:
    found = re.search(r"step ([\d,]+) of", page.locator(".run").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1280, "height": 900})


def send(root, number: signal.Signals) -> None:
    """To the run's process. One that is halted is alive; so tests need not keep pace with it."""
    os.kill(json.loads((root / RUN / "webui_run.json").read_text())["pid"], number)


def test_a_person_tunes_a_model(root, tmp_path, chromium):
    server, requests = Server(root), []
    try:
        page = open_page(chromium, server, requests)
        fill_in(page, root, tmp_path)
        fits_a_phone(page)
        look_ahead(page)

        # another browser holds the same form and command; what it starts in a terminal is that command
        other = open_page(chromium, server)
        see(other.locator("#message"), "Ready to start")
        assert command(other) == command(page)
        with contextlib.chdir(root):
            arguments = parse_arguments(shlex.split(command(page).replace("\\\n", ""))[2:])
        assert (arguments.training.max_steps, arguments.lora.use_lora) == (100, True)

        # start: the page turns to the run; its curve grows
        button(page, "Start").click()
        see(page.locator(".badge"), "running")
        see(page.locator(".run"), re.compile(r"step \d+ of 100"))
        before = steps(page)
        expect(page.locator(".plots svg").first).to_be_visible(timeout=SECONDS * 1000)
        page.wait_for_function(f"+document.querySelector('.run progress').value > {before + 5}")
        send(root, signal.SIGSTOP)
        see(page.locator(".run"), "tokens a second")
        answers = page.frame_locator("iframe[title='held-out answers']")
        expect(answers.locator("img").first).to_be_visible(timeout=SECONDS * 1000)
        fits_a_phone(page)

        # another page sees it, and cannot start a second one in its folder
        button(other, "Start").click()
        see(other.locator("#message"), "a run is alive in --output_dir out/first")
        other.get_by_role("tab", name="Runs").click()
        see(other.locator(".badge"), "running")

        # stop in one page, seen in the other; resume, with another interface in between
        button(page, "Stop").click()
        see(page.locator(".run"), "stopping after this step")
        expect(button(page, "Kill")).to_be_visible()
        send(root, signal.SIGCONT)
        see(page.locator(".badge"), "stopped")
        see(other.locator(".badge"), "stopped")
        stopped_at = steps(page)
        assert (root / RUN / f"checkpoint-{stopped_at}/checkpoint.json").is_file() and 0 < stopped_at < 100
        button(other, "Resume").click()
        see(other.locator(".badge"), "running")
        other.wait_for_function(f"+document.querySelector('.run progress').value > {stopped_at}")
        send(root, signal.SIGSTOP)
        page.close()
        other.close()
        server.end()
        server.start()
        page = open_page(chromium, server, requests)
        page.get_by_role("tab", name="Runs").click()
        see(page.locator(".badge"), "running")

        # killed by somebody, resumed to its end
        send(root, signal.SIGKILL)
        see(page.locator(".badge"), "interrupted")
        button(page, "Resume").click()
        see(page.locator(".badge"), "running")
        see(page.locator(".badge"), "finished")
        assert steps(page) == 100
        see(page.locator(".log"), f"Saved to {RUN}.")
        page.get_by_role("tab", name="Tune").click()
        button(page, "Start").click()
        see(page.locator("#message"), "out/first holds a run. Press again")

        chat(page, root)
        fits_a_phone(page)
        merge(page, root)
        foreign = {url for url in requests if not url.startswith((server.address, "data:", "blob:"))}
        assert not foreign
        assert "Traceback" not in server.log
    finally:
        server.end()


def command(page: Page) -> str:
    return page.locator(".bar textarea").input_value()


def fill_in(page: Page, root, tmp_path) -> None:
    """The form of a run of a minute on data of one's own, with mistakes on the way."""
    see(page.locator("#message"), "Still needed: a model, data, a new output folder.")
    assert not page.locator(".wrong").count()
    fill(page, "model_id", "tiny")  # a folder of the root
    page.locator("#model_id input").first.press("Enter")
    expect(page.locator("#model_local_path input").first).to_have_value("tiny", timeout=SECONDS * 1000)
    colours = ("red", "blue")
    for colour in colours:
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    lines = [f"{colours[i % 2]}.png,Which colour is picture {i}?,{colours[i % 2]}" for i in range(ROWS)]
    (tmp_path / "mine.csv").write_text("\n".join(["photo,what,reply", *lines]))
    names = ("mine.csv", "red.png", "blue.png")
    page.locator("#drop input[type=file]").set_input_files([tmp_path / name for name in names])
    see(page.locator(".block.first-row"), "Which colour is picture 0?")
    for menu, name in (("question", "what"), ("answer", "reply"), ("image", "photo")):
        expect(page.get_by_label(f"{menu} from").first).to_have_value(name, timeout=SECONDS * 1000)
    page.get_by_label("quick look").check()
    expect(page.locator("#max_steps :is(input, textarea)").first).to_have_value("20", timeout=SECONDS * 1000)
    fill(page, "output_dir", RUN)
    fill(page, "learning_rate", "3e-3")
    fill(page, "per_device_train_batch_size", "none")
    see(page.locator("#per_device_train_batch_size"), "invalid int value: 'none'")
    fill(page, "per_device_train_batch_size", "6")
    fill(page, "max_steps", "100")
    fill(page, "save_steps", "50")
    fill(page, "eval_generate", "4")
    page.locator("#eval_strategy input").first.click()
    page.get_by_role("option", name="steps").click()
    button(page, "Checkpoints and log").click()
    fill(page, "save_total_limit", "2")
    fill(page, "logging_steps", "1")
    button(page, "Devices, engine").click()
    fill(page, "further_flags", "--chat_template /etc/hosts")
    see(page.locator("#message"), "--chat_template /etc/hosts leads out of")
    fill(page, "further_flags", "--train_vision_encoder True")
    see(page.locator("#message"), "--train_vision_encoder has a field of its own")
    fill(page, "further_flags", "--gradient_accumulation_steps 2")
    see(page.locator("#message"), "has a field of its own")
    fill(page, "gradient_accumulation_steps", "1")
    fill(page, "further_flags", "--adam_beta2 0.95")
    see(page.locator("#message"), "Ready to start")
    assert "--use_lora True" in command(page) and "--adam_beta2 0.95" in command(page)


def look_ahead(page: Page) -> None:
    """Rows as they are trained on, one by a search; memory; all rows."""
    fill(page, "search_rows", "picture 7?")
    page.locator("#search_rows :is(input, textarea)").first.press("Enter")
    rows = page.frame_locator("iframe[title=rows]")
    see(rows.locator("header, body").first, "1 of 1 rows")
    see(rows.locator("section.card").last, "picture 7?")
    fill(page, "search_rows", "")
    button(page, "Forecast the memory").click()
    see(page.locator(".log").first, "GB")
    button(page, "Check all rows").click()
    see(page.frame_locator("iframe[title=check]").locator("h1"), "mine.csv")


def merge(page: Page, root) -> None:
    page.get_by_role("tab", name="Runs").click()
    button(page, "After a run").click()
    page.get_by_role("button", name="Merge", exact=True).click()
    see(page.locator(".log").last, "Self-check")
    assert (root / f"{RUN}-merged/config.json").is_file()
    button(page, "Pack for download").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {"adapter_model.safetensors", "report.html", "args.yaml"} <= {*archive.namelist()}


def chat(page: Page, root) -> None:
    page.get_by_role("tab", name="Chat").click()
    pick(page, "chat_model", RUN)
    question = page.locator("textarea:visible").last
    page.locator("input[type=file]").last.set_input_files(root / PICTURE)
    expect(page.locator("button[aria-label*='Remove']").first).to_be_visible()
    question.fill("What colour do you see?")
    question.press("Enter")
    see(page.locator(".message.bot").last, answer_of(root / RUN, root / PICTURE, "What colour do you see?"))
    question.fill("Which shape do you see?")
    question.press("Enter")
    expect(page.locator(".message.bot")).to_have_count(2, timeout=SECONDS * 1000)
    page.get_by_label("let the base answer too").check()
    question.fill("And the base?")
    question.press("Enter")
    see(page.locator(".bot").last, "The base, without tuning")
    page.get_by_label("let the base answer too").uncheck()
    fill(page, "chat_model", "/usr")
    page.locator("#chat_model input").first.press("Enter")
    question.fill("And now?")
    question.press("Enter")
    see(page.locator(".message.bot").last, "the model /usr leads out of")


def answer_of(model_path, picture, question: str) -> str:
    model, collator = load(str(model_path))
    content = [{"type": "image", "image": Image.open(picture).convert("RGB")}, {"type": "text", "text": question}]
    return "".join(stream_answer(model, collator, [{"role": "user", "content": content}], 128)).strip()


def test_files_and_strangers(root, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (root / "rows.txt").write_text("private")
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    server = Server(root, FINELMM_WEBUI_PASSWORD="sesame", TMPDIR=str(uploads))
    try:
        assert server.get("/config") == 401
        wrong, right = b"username=me&password=no", b"username=me&password=sesame"
        assert server.get("/login", wrong) == 400
        urllib.request.install_opener(urllib.request.build_opener(urllib.request.HTTPCookieProcessor()))
        assert server.get("/login", right) == 200
        assert server.get("/config") == 200
        for path in (tmp_path / "secret.txt", root / "rows.txt", REPO / "webui.py", "/etc/hosts", "../secret.txt"):
            for route in ("/gradio_api/file=", "/file=", "/static/", "/gradio_api/file/"):
                assert server.get(f"{route}{path}") in (403, 404), (route, path)
        assert server.get("/", Host="evil.example") == 400

        # uploads: from its own page, up to a size, removed at the end
        form = {"Content-Type": "multipart/form-data; boundary=edge"}
        body = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--edge--\r\n'
        for origin, code in (("http://evil.example", 403), ("null", 403), (server.address, 200)):
            assert server.get("/gradio_api/upload", body % b"picture", Origin=origin, **form) == code
        assert len(list(uploads.glob("finelmm-webui-*/*/a.png"))) == 1
        assert server.get("/gradio_api/upload", body % bytes(525_000_000), **form) == 413
        server.process.terminate()
        assert server.process.wait(SECONDS) == 143 and not [path for path in uploads.rglob("*") if path.is_file()]
    finally:
        urllib.request.install_opener(None)
        server.end()
