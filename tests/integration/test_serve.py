"""``msl serve``: its interface, what it refuses, and the page in a real browser, from the photograph to the answer."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from msldata.contract.keepmask import decode_png, encode_png, resize_nearest
from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.config import ModelConfig, TrainConfig
from msltrain.stream.config import StreamConfig
from msltrain.use import serve as serving
from msltrain.use.overlay import hide, paint
from msltrain.use.photo_session import Studio, _names
from msltrain.use.predict import Predictor, read_square
from msltrain.use.read_images import find_images, read_photo
from msltrain.use.serve import MAX_BODY, StudioServer, is_loopback
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo

pytestmark = pytest.mark.usefixtures("ready_python")

REPOSITORY = Path(__file__).resolve().parents[2]
SIDE = 128


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photographs and the run of a random model, whose thresholds lie at 0.5."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "photos").mkdir()
    for number in range(3):
        (folder / "photos" / f"s{number}.jpg").write_bytes(photo(number, 300, 200))
    # The attention's weight makes the logits large, so that a random model too says yes here and no there.
    config = TrainConfig(
        stream=StreamConfig(image_size=SIDE, batch_size=4),
        model=ModelConfig(backbone="resnet10t", attention_weight=9.0),
    )
    write_checkpoint(folder / "run", CLASSES, config=config)
    return folder


@pytest.fixture(scope="module")
def server(place):
    studio = Studio([Predictor(place / "run", torch.device("cpu"))], find_images([place / "photos"]))
    with StudioServer(studio, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(
    server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_answers_are_those_of_the_predictor(server, place):
    file = place / "photos" / "s1.jpg"
    status, _, body = ask(server, "POST", "/api/photos", file.read_bytes())
    found = json.loads(body)
    assert status == 200 and (found["width"], found["height"]) == (300, 200)
    square = read_square(file, SIDE)
    [expected] = server.studio.predictors[0].answer([square], with_places=True)
    [answer] = found["answers"]
    assert answer["scores"] == pytest.approx(expected.score_K.tolist(), abs=1e-5)
    places = answer["places"]
    shape = (len(CLASSES), places["rows"], places["columns"])
    place_KHW = np.frombuffer(base64.b64decode(places["bytes"]), np.uint8).reshape(shape)
    np.testing.assert_allclose(place_KHW / 255, expected.place_score_KHW, atol=0.5 / 255 + 1e-6)

    keep_mask_HW = np.ones((40, 60), np.uint8)
    keep_mask_HW[:20] = 0
    status, _, body = ask(server, "POST", f"/api/photos/{found['id']}/hole", encode_png(keep_mask_HW))
    behind = json.loads(body)
    keep_mask_SS = np.repeat(np.uint8([0, 1]), SIDE // 2)[:, None].repeat(SIDE, axis=1)
    [expected] = server.studio.predictors[0].answer([square], keep_mask_SS)
    assert behind["hidden"] == 0.5
    assert behind["answers"][0]["scores"] == pytest.approx(expected.score_K.tolist(), abs=1e-5) != answer["scores"]
    assert json.loads(ask(server, "POST", "/api/examples/1", b"")[2]) == found


def test_the_photograph_is_shown_as_the_network_sees_it(server):
    turned = Image.open(io.BytesIO(photo(0, 300, 200)))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was held upright
    data = io.BytesIO()
    turned.save(data, "JPEG", exif=exif)
    found = json.loads(ask(server, "POST", "/api/photos", data.getvalue())[2])
    shown = Image.open(io.BytesIO(ask(server, "GET", f"/api/photos/{found['id']}.jpg")[2]))
    assert shown.size == (200, 300) == (found["width"], found["height"]) and not shown.getexif()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("POST", "/api/photos", b"this is no image", {}, 400, "not an image"),
        ("POST", "/api/photos", photo(0)[:300], {}, 400, "the photograph:"),
        ("POST", "/api/photos", photo(0)[:-200] + b"\xff\xd9", {}, 400, "the photograph: truncated JPEG"),
        ("POST", "/api/photos", None, {"Content_Length": str(MAX_BODY + 1)}, 413, "more than 25 MiB"),
        ("POST", "/api/photos", b"5", {"Transfer_Encoding": "chunked", "Content_Length": "1"}, 400, "in one way"),
        ("GET", "/", None, {"Host": "["}, 400, "not an address"),
        ("GET", "/api/photos", None, {}, 405, "Not Allowed"),
        ("POST", f"/api/photos/{'0' * 32}/hole", b"", {}, 404, "not known"),
        ("POST", "/api/examples/7", b"", {}, 404, "no example 7"),
        ("GET", "/../../../../etc/passwd", None, {}, 404, "nothing here"),
        ("GET", "/api/examples/..%2f..%2fetc%2fpasswd", None, {}, 404, "nothing here"),
        ("GET", "/", None, {"Host": "attacker.example"}, 421, "localhost only"),
        ("POST", "/api/photos", photo(0), {"Origin": "http://attacker.example"}, 403, "other pages"),
    ],
)
def test_refused(server, method, path, body, headers, status, words):
    found, _, answer = ask(server, method, path, body, **headers)
    assert found == status and words in json.loads(answer)["error"]
    assert ask(server, "GET", "/api/models")[0] == 200, "and goes on"


def test_the_file_of_a_form_and_a_body_of_unknown_length_are_taken(server, place):
    data = (place / "photos" / "s1.jpg").read_bytes()
    expected = json.loads(ask(server, "POST", "/api/photos", data)[2])
    form = b"--x\r\nContent-Disposition: form-data; name=a; filename=a.jpg\r\n\r\n" + data + b"\r\n--x--\r\n"
    kind = {"Content_Type": "multipart/form-data; boundary=x"}
    assert json.loads(ask(server, "POST", "/api/photos", form, **kind)[2]) == expected
    empty = ask(server, "POST", "/api/photos", b"--x--\r\n", **kind)
    assert empty[0] == 400 and b"holds no file" in empty[2]
    assert json.loads(ask(server, "POST", "/api/photos", iter([data[:999], data[999:]]))[2]) == expected


def test_many_at_once_are_all_answered(server, place):
    bodies = [(place / "photos" / f"s{number % 3}.jpg").read_bytes() for number in range(40)]
    expected = [json.loads(ask(server, "POST", "/api/photos", body)[2])["answers"][0]["scores"] for body in bodies[:3]]
    with ThreadPoolExecutor(40) as clients:
        found = list(clients.map(lambda body: ask(server, "POST", "/api/photos", body), bodies))
    assert [status for status, _, _ in found] == [200] * 40
    for number, (_, _, body) in enumerate(found):
        assert json.loads(body)["answers"][0]["scores"] == pytest.approx(expected[number % 3], abs=1e-4)


@pytest.mark.parametrize("drops", [1, 99])
def test_an_upload_that_drips_is_dropped(server, monkeypatch, drops):
    """The time is for the whole of it, however often a drop comes."""
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.5)
    with socket.create_connection(server.server_address, timeout=0.1) as client:
        client.sendall(b"POST /api/photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
        answer, until, met_a_drop = b"", time.monotonic() + 9, False
        while True:  # until the server closes the connection
            assert time.monotonic() < until, "it goes on"
            try:
                if not (part := client.recv(4096)):
                    break
                answer += part
            except TimeoutError:
                with suppress(ConnectionError):
                    client.sendall(b"\xff" * (drops > 0))
                drops -= 1
            except ConnectionResetError:  # the answer and a drop have met on their way
                met_a_drop = drops > 0
                break
    assert met_a_drop or (answer.startswith(b"HTTP/1.1 408") and b"nothing whole came" in answer)


def test_what_comes_at_the_same_time_is_answered_as_one_batch(place):
    predictor = Predictor(place / "run", torch.device("cpu"))
    pictures = [read_photo(picture) for picture in find_images([place / "photos"])]
    alone = [predictor.answer([photo.square(SIDE)])[0].score_K for photo in pictures]
    sizes, asked, answer = [], threading.Semaphore(0), predictor.answer

    def slow(squares, *rest, **options):
        if not sizes:  # the first is kept waiting until the others have come
            for _ in range(7):
                assert asked.acquire(timeout=60)
        sizes.append(len(squares))
        return answer(squares, *rest, **options)

    predictor.answer = slow
    studio = Studio([predictor])
    put = studio._answers._asked.put

    class Counting:
        def __getattr__(self, name):
            return getattr(queue_, name)

        def put(self, question):
            put(question)
            asked.release()

    queue_, studio._answers._asked = studio._answers._asked, Counting()
    with StudioServer(studio, "127.0.0.1", 0) as server, ThreadPoolExecutor(7) as clients:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bodies = [(place / "photos" / f"s{number % 3}.jpg").read_bytes() for number in range(7)]
        found = list(clients.map(lambda body: ask(server, "POST", "/api/photos", body), bodies))
        server.shutdown()
    batches = [size for size in sizes if size]  # the end may come as a batch of none
    assert len(batches) == 2 and sum(batches) == 7  # those that had come when the first was taken, and the others
    for number, (_, _, body) in enumerate(found):
        assert json.loads(body)["answers"][0]["scores"] == pytest.approx(alone[number % 3].tolist(), abs=1e-4)


def until_closed(client: socket.socket, drip: bytes) -> bytes:
    """What a client hears that says a little every twentieth of a second, until the server has enough."""
    heard = b""
    client.settimeout(0.05)
    for _ in range(400):
        try:
            client.sendall(drip)
            if not (part := client.recv(4096)):
                return heard
            heard += part
        except TimeoutError:
            continue
        except OSError:
            return heard
    raise AssertionError("it is still open")


@pytest.mark.parametrize("before", [b"", b"GET /api/models HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_head_that_drips_is_dropped(server, monkeypatch, before):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.5)
    with socket.create_connection(server.server_address, timeout=10) as client:
        client.sendall(before)
        assert before == b"" or client.recv(4096).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert b"HTTP/1.1" not in until_closed(client, b"X-More: 1\r\n")


def test_a_request_whose_body_takes_longer_than_a_head_may_is_answered(server, place, monkeypatch):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.3)
    data = (place / "photos" / "s1.jpg").read_bytes()
    going_on = threading.Event()
    threading.Timer(0.8, going_on.set).start()

    def parts():
        yield data[:99]
        going_on.wait()
        yield data[99:]

    assert ask(server, "POST", "/api/photos", parts())[0] == 200


def test_a_client_that_never_reads_is_dropped(server, monkeypatch):
    monkeypatch.setattr(serving, "ANSWER_SECONDS", 0.5)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect(server.server_address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 600)  # many times what the system keeps for it
        connections, address = server._server.server_state.connections, client.getsockname()
        wait_until(lambda: any(one.client == address for one in connections))
        wait_until(lambda: not any(one.client == address for one in connections))
    assert ask(server, "GET", "/api/models")[0] == 200


def wait_until(holds):
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to that")


def test_connections_that_ask_nothing_make_room(server, monkeypatch):
    """The head of each lasts for ever; none of them, nor all together, keep a question from its answer."""
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 40)
    monkeypatch.setattr(serving, "HEAD_SECONDS", 600)
    with ExitStack() as held:
        clients = []
        for _ in range(60):
            clients.append(held.enter_context(socket.create_connection(server.server_address, timeout=10)))
            clients[-1].sendall(b"GET / HTTP/1.1\r\nX-Half: ")
        assert ask(server, "GET", "/api/models")[0] == 200
        assert len(server._server.server_state.connections) <= 40
        assert until_closed(clients[0], b"x") == b""
        clients[-1].sendall(b"1\r\nHost: localhost\r\n\r\n")
        assert clients[-1].recv(4096).startswith(b"HTTP/1.1 200")


def test_a_large_upload_is_refused_while_it_comes(server):
    whole = b"\xff" * (MAX_BODY + 2**20)
    assert ask(server, "POST", "/api/photos", iter([whole]))[0] == 413


def test_the_interface_describes_itself(server):
    described = json.loads(ask(server, "GET", "/api/openapi.json")[2])
    page = ask(server, "GET", "/api")[2].decode()
    routes = {route.path: route.methods for route in serving.make_app(server.studio).routes}
    for path, verbs in described["paths"].items():
        pattern = path.replace("{number}", "{number:int}")
        assert {verb.upper() for verb in verbs} <= routes[pattern] and path in page
    assert len(described["paths"]) == len(routes) - 3  # the page, /api and the description itself


def test_only_the_last_photographs_are_kept(server):
    first = json.loads(ask(server, "POST", "/api/photos", photo(50))[2])["id"]
    for number in range(51, 83):
        ask(server, "POST", "/api/photos", photo(number))
    assert ask(server, "GET", f"/api/photos/{first}.jpg")[0] == 404
    assert len(server.studio._photos) == 32


def test_the_page_may_load_nothing_from_elsewhere(server):
    _, headers, page = ask(server, "GET", "/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(rb"https?://|url\(|@import", page) and b"{{" not in page
    nonces = set(re.findall(rb'nonce="([^"]+)"', page))
    assert len(nonces) == 1 and nonces != set(re.findall(rb'nonce="([^"]+)"', ask(server, "GET", "/")[2]))


def test_addresses(server, place):
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.5") and not is_loopback("example.org")
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1, port .* --port"):
        StudioServer(server.studio, "127.0.0.1", server.server_address[1])


def test_the_command_starts_and_stops_when_asked(place):
    command = [sys.executable, str(REPOSITORY / "cli.py"), "serve", "--checkpoint", str(place / "run"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    signals = (signal.SIGINT, signal.SIGTERM)
    processes = [
        subprocess.Popen(
            [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in signals
    ]
    try:
        for process, number in zip(processes, signals, strict=True):
            line = process.stdout.readline()
            assert "stop with Ctrl-C" in line, process.stderr.read()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
            with socket.create_connection(("127.0.0.1", port), timeout=60):  # a client that says nothing delays nothing
                process.send_signal(number)
                output, errors = process.communicate(timeout=60)
            assert process.returncode == 0 and output.splitlines()[-1] == "stopped" and "Traceback" not in errors
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def page(chromium, server):
    """The page with the second example loaded, after the first, with which it begins."""
    chromium.look(1280)
    chromium.open(server.url)
    chromium.wait_for("document.querySelectorAll('#classes li').length === 3")
    first = chromium.run("return state.photo")
    chromium.click("#examples li:nth-child(2) button")
    chromium.wait_for("state.photo !== arguments[0]", first)
    return chromium


def shown(page, element: str) -> str:
    return page.run(f"return document.querySelector('{element}').textContent")


def test_painting_changes_predictions_and_activation(page, server, place):
    square = read_square(place / "photos" / "s1.jpg", SIDE)
    [whole] = server.studio.predictors[0].answer([square])
    best = int(np.argmax(whole.score_K))
    assert shown(page, "#classes li .name") == CLASSES[best]
    assert shown(page, "#seen-0-words") == f"{CLASSES[best]} {round(100 * float(whole.score_K[best]))} %"
    pixels = "return document.querySelector('#seen-behind-0').toDataURL()"
    before = page.run(pixels)
    assert before == page.run("return document.querySelector('#seen-0').toDataURL()")

    # Twenty percent of the photograph's height and more, across its middle.
    page.run("document.querySelector('#brush').value = 60")
    page.drag("#stage", [(0.02, 0.5), (0.98, 0.5)])
    page.wait_for("state.behind && sent === 0 && wanted === 0")
    hidden = page.run("return state.behind.hidden")
    assert 0.25 < hidden < 0.35
    assert page.run(pixels) != before
    keep_mask_SS = np.ones((SIDE, SIDE), np.uint8)
    keep_mask_SS[round(SIDE * 0.35) : round(SIDE * 0.65)] = 0
    [masked] = server.studio.predictors[0].answer([square], keep_mask_SS)
    change_K = masked.score_K - whole.score_K
    assert np.abs(change_K).max() > 0.005, "a model that does not care"
    np.testing.assert_allclose(page.run("return state.behind.answers[0].scores") - whole.score_K, change_K, atol=0.004)
    assert "→" in shown(page, "#classes li .numbers") and f"{round(100 * hidden)} % hidden" == shown(page, "#share")

    page.drag("#stage", [(0.5, 0.1), (0.6, 0.1)], touch=True)
    page.wait_for(f"state.behind.hidden > {hidden} && sent === 0")
    page.click("#undo")
    page.wait_for(f"state.behind.hidden === {hidden}")
    page.click("#clear")
    page.wait_for("state.behind === null")
    assert page.run(pixels) == before and page.run("return document.querySelector('#clear').disabled")
    page.click("#random")
    page.wait_for("state.behind && state.behind.hidden > 0.05")
    assert page.take_logs()[0] == []


def test_activation_is_drawn_as_predict_draws_it(page, server, place):
    file = place / "photos" / "s1.jpg"
    photo_HWC = read_photo(find_images([file])[0]).pixels()
    square = read_square(file, SIDE)
    page.run("document.querySelector('#brush').value = 50")
    page.drag("#stage", [(0.25, 0.3), (0.6, 0.8)])
    page.wait_for("state.behind && sent === 0 && wanted === 0")
    address = page.run("return keepMask().toDataURL()")
    keep_mask_HW = decode_png(base64.b64decode(address.partition(",")[2]), "the page")
    assert 0.05 < 1 - keep_mask_HW.mean() < 0.5
    keep_mask_SS = resize_nearest(keep_mask_HW, SIDE, SIDE)
    answers = [server.studio.predictors[0].answer([square], mask, with_places=True)[0] for mask in (None, keep_mask_SS)]
    photos = [photo_HWC, hide(photo_HWC, keep_mask_HW, server.studio.predictors[0].hole_colour)]
    for k in range(len(CLASSES)):
        page.click(f"#classes [data-k='{k}']")
        for canvas, answer, shown_HWC in zip(("seen-0", "seen-behind-0"), answers, photos, strict=True):
            address = page.run(f"return document.querySelector('#{canvas}').toDataURL()")
            drawn = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
            difference_HWC = np.abs(np.asarray(drawn, float) - paint(shown_HWC, answer.place_score_KHW[k]))
            assert difference_HWC.mean() < 2, f"class {k}, {canvas}"
            other = paint(shown_HWC, answer.place_score_KHW[k - 1]).astype(float)
            assert np.abs(np.asarray(drawn, float) - other).mean() > 4, "classes that look alike show nothing"


def test_of_many_classes_that_a_hole_brings_up_the_highest_join(page):
    page.run(
        """
        const each = (make) => Array.from({ length: 60 }, (_, k) => make(k));
        state.classes = each((k) => `c${k}`);
        state.models = [{ ...state.models[0], position: each((k) => k), thresholds: each(() => 0.5) }];
        state.whole = { answers: [{ scores: each((k) => 0.4 - k / 200) }] };
        state.behind = { answers: [{ scores: each((k) => 0.6 + k / 200) }], hidden: 0.3 };
        state.order = each((k) => k);
        showClasses();
        """
    )
    names = page.run("return [...document.querySelectorAll('#classes .name')].map((name) => name.textContent)")
    assert names == [f"c{k}" for k in (*range(8), *range(52, 60))]


def test_keyboard_alone_is_enough(page):
    page.run("document.querySelector('#stage').focus()")
    page.press(" ")
    page.wait_for("state.behind && sent === 0")
    hidden = page.run("return state.behind.hidden")
    for _ in range(10):
        page.press("\ue014")  # right
    page.press("+")
    page.press(" ")
    page.wait_for(f"state.behind && state.behind.hidden > {hidden}")
    page.run("document.querySelector('#classes li:nth-child(3) button').focus()")
    page.press("\ue007")  # enter
    name = shown(page, "#classes li:nth-child(3) .name")
    assert shown(page, "#seen-0-words").startswith(name)
    assert page.run("return document.activeElement.closest('li') === document.querySelectorAll('#classes li')[2]")
    unnamed = page.run(
        """return [...document.querySelectorAll("button, input, canvas, img")].filter((e) =>
        !(e.ariaLabel || e.textContent.trim() || e.alt || e.labels?.length || e.querySelector("img[alt]"))).length"""
    )
    assert unnamed == 0


def test_a_chosen_file_is_predicted_and_a_bad_one_refused(page, place, tmp_path):
    first = page.run("return state.photo")
    (tmp_path / "text.jpg").write_text("no image")
    page.type("#file", str(tmp_path / "text.jpg"))
    page.wait_for("!document.querySelector('#error').classList.contains('hidden')")
    assert "not an image" in shown(page, "#error") and page.run("return state.photo") == first
    page.type("#file", str(place / "photos" / "s2.jpg"))
    page.wait_for("state.photo !== arguments[0]", first)
    assert page.run("return document.querySelector('#error').classList.contains('hidden')")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_on_a_phone_and_a_desk(page, server, width, dark, tmp_path):
    page.look(width, dark=dark)
    assert page.overflow() == []
    # The longest numbers there can be, in bold, stay in their column.
    scores = page.run("return state.whole.answers[0].scores.slice()")
    page.run("state.whole.answers[0].scores.fill(1); state.behind = {...state.whole, hidden: 0.5}; showClasses()")
    assert shown(page, "#classes li .numbers") == "100 % → 100 %"
    wide = "[...document.querySelectorAll('.numbers')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert page.run(f"return {wide}") == 0
    page.run("state.whole.answers[0].scores = arguments[0]; state.behind = null; showClasses()", scores)
    background, ink = page.run(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    light_of = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (background, ink)]
    assert light_of[0] < 0.2 < 0.8 < light_of[1] if dark else light_of[1] < 0.2 < 0.8 < light_of[0]
    _, requests = page.take_logs()
    assert requests and all(address.startswith((server.url, "data:")) for address in requests)
    if folder := os.environ.get("MSL_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"serve-{width}-{'dark' if dark else 'light'}.png")


OTHERS = ("cat", "boat", "dog")


@pytest.fixture(scope="module")
def two(place):
    """Two models, of other classes in another order and of another input size."""
    config = TrainConfig(
        stream=StreamConfig(image_size=96, batch_size=4, mean=(0.5, 0.5, 0.5)),
        model=ModelConfig(backbone="resnet10t", attention_weight=9.0),
    )
    write_checkpoint(place / "other", OTHERS, seed=3, config=config)
    predictors = [Predictor(place / name, torch.device("cpu")) for name in ("run", "other")]
    with StudioServer(Studio(predictors, find_images([place / "photos"])), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_each_model_answers_as_alone(two, place):
    about = json.loads(ask(two, "GET", "/api/models")[2])
    assert [model["name"] for model in about["models"]] == ["run", "other"]
    assert about["classes"] == ["bird", "boat", "cat", "dog"]
    keep_mask_HW = np.ones((40, 60), np.uint8)
    keep_mask_HW[:20] = 0
    file = place / "photos" / "s2.jpg"
    whole = json.loads(ask(two, "POST", "/api/photos", file.read_bytes())[2])
    behind = json.loads(ask(two, "POST", f"/api/photos/{whole['id']}/hole", encode_png(keep_mask_HW))[2])
    for number, predictor in enumerate(two.studio.predictors):
        size = predictor.image_size
        square, keep_mask_SS = read_square(file, size), resize_nearest(keep_mask_HW, size, size)
        for found, mask in ((whole, None), (behind, keep_mask_SS)):
            [expected] = predictor.answer([square], mask)
            assert found["answers"][number]["scores"] == pytest.approx(expected.score_K.tolist(), abs=1e-5)


def test_the_page_says_where_models_differ(chromium, two, place):
    chromium.look(1280)
    chromium.open(two.url)
    chromium.wait_for("document.querySelectorAll('#classes li').length === 4")  # the first example comes by itself
    assert chromium.run("return document.title") == "What do they see?"

    def differing(square_of: dict, masks: dict) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for predictor, name in zip(two.studio.predictors, two.studio.names, strict=True):
            size = predictor.image_size
            [answer] = predictor.answer([square_of[size]], masks.get(size))
            for label in predictor.predicted(answer):
                found.setdefault(label, []).append(name)
        knows = {label: [label in one.classes for one in two.studio.predictors].count(True) for label in found}
        return {label: who for label, who in found.items() if len(who) < knows[label]}

    sizes = [predictor.image_size for predictor in two.studio.predictors]
    squares = {size: read_square(place / "photos/s0.jpg", size) for size in sizes}
    chromium.drag("#stage", [(0.1, 0.5), (0.9, 0.5)])
    chromium.wait_for("state.behind && sent === 0 && wanted === 0")
    address = chromium.run("return keepMask().toDataURL()")
    keep_mask_HW = decode_png(base64.b64decode(address.partition(",")[2]), "the page")
    masks = {size: resize_nearest(keep_mask_HW, size, size) for size in sizes}
    lines = chromium.run("return [...document.querySelectorAll('#differences li')].map((one) => one.textContent)")
    for line, start, seen in zip(lines, ("Whole: ", "Part hidden: "), ({}, masks), strict=True):
        expected = differing(squares, seen)
        said = dict(one.split(" only by ") for one in line.removeprefix(start).split(", ") if " only by " in one)
        assert line.startswith(start) and said == {label: " and ".join(who) for label, who in expected.items()}
        assert said or "all name the same classes" in line
    marked = chromium.run("return [...document.querySelectorAll('.differ .name')].map((one) => one.textContent)")
    assert set(marked) == set(differing(squares, {})) | set(differing(squares, masks))

    # A class that a model does not know has no score of it, and no map.
    chromium.run(
        "[...document.querySelectorAll('#classes button')].find((one) => one.textContent.includes('dog')).click()"
    )
    assert shown(chromium, "#seen-0-words") == "dog not a class of it" and "dog" in shown(chromium, "#seen-1-words")
    assert chromium.take_logs()[0] == []


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, False), (1280, True)])
def test_two_models_fit_a_phone_and_a_desk(chromium, two, width, dark):
    chromium.look(width, dark=dark)
    chromium.open(two.url)
    chromium.wait_for("document.querySelectorAll('#classes li').length === 4")
    chromium.click("#random")
    chromium.wait_for("state.behind && sent === 0 && wanted === 0")
    assert chromium.overflow() == []
    chromium.run("state.whole.answers.forEach((one) => one.scores.fill(1)); showClasses()")
    wide = "[...document.querySelectorAll('.numbers')].filter((one) => one.scrollWidth > one.clientWidth + 1).length"
    assert chromium.run(f"return {wide}") == 0
    if folder := os.environ.get("MSL_SCREENSHOTS"):
        chromium.run("show()")
        chromium.screenshot(Path(folder) / f"serve-two-{width}-{'dark' if dark else 'light'}.png")


def test_models_are_called_by_what_tells_them_apart():
    assert _names(["runs/a/checkpoints/best", "runs/b/export"]) == ("a", "b")
    assert _names(["x/run", "y/run"]) == ("x/run", "y/run") and _names(["hf://me/birds"]) == ("birds",)
    assert _names(["a", "a"]) == ("a (1)", "a (2)")


def test_names_are_one_for_each_model(place):
    command = ["serve", "--checkpoint", str(place / "run"), "--name", "a", "--name", "b"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "1 model and 2 names" in result.output
