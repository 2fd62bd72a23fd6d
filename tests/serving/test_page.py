"""The chat page, used as people use it, in a real browser against a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.serving.page_browser import Page, browser
from tests.serving.page_probes import (
    ACTIVE_CONTENT,
    COLOURS,
    DANGLING,
    FOCUSED,
    SMALL_TARGETS,
    TO_THE_END,
    UNNAMED,
    WIDTHS,
    contrast,
    script,
)
from tests.serving.serving_fakes import FakeEngine, Running, running_server


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server(FakeEngine(script, context=8192), model_name="tiny-llama") as running:
        yield running


@pytest.fixture(autouse=True)
def no_complaints(page: Page) -> Iterator[None]:
    """No test leaves an error or a blocked script in the browser's log, unless it takes it out."""
    yield
    assert page.log() == []


def last(page: Page) -> str:
    return page.texts(".turn.assistant .body")[-1]


def test_an_answer_streams_and_is_measured(page: Page, server: Running) -> None:
    page.open(server.url)
    page.until(lambda: page.text("#model-name") == "tiny-llama")
    page.ask("Hello, wörld")
    assert page.text(".turn.user .body") == "Hello, wörld"
    assert last(page) == "You said: Hello, wörld"
    stats = page.text(".turn.assistant .stats")
    assert "23 tokens" in stats, stats
    assert "tokens/s" in stats
    assert "first after" in stats
    assert "3 of them cached" in stats
    request = server.engine.requests[-1]  # type: ignore[attr-defined]
    used = len(request.prompt) + 23
    assert page.text("#context-text") == f"{used} of 8,192 tokens"
    assert page.text("#title") == "Hello, wörld"
    said = request.sampling
    assert (said.temperature, said.top_p, said.top_k) == (0.7, 0.95, 50)


def test_markdown_becomes_elements(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("markdown please")
    shown = page.run(
        "return Object.fromEntries(['h1','strong','em','li li','td','pre code','blockquote','a']"
        ".map((name) => [name, document.querySelector('.assistant .body ' + name)?.textContent]))"
    )
    assert shown == {
        "h1": "Heading",
        "strong": "bold",
        "em": "emphasis",
        "li li": "nested",
        "td": "1",
        "pre code": 'print("hi")',
        "blockquote": "quoted",
        "a": "a link",
    }
    assert page.text(".code-block .language") == "python"
    link = page.find(".assistant a")
    assert link.get_attribute("rel") == "noopener noreferrer"
    page.click(".code-block .icon-button")
    copied = "return document.querySelector('.code-block .icon-button').ariaLabel"
    page.until(lambda: page.run(copied) == "Copied")


def test_a_hostile_answer_stays_text(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("hostile please")
    assert "<script>window.hurt = 1</script>" in last(page)
    assert "<script>window.hurt = 4</script>" in page.text(".code-block code")
    assert page.run("return window.hurt ?? null") is None
    assert page.run(ACTIVE_CONTENT) == 0
    links = "return [...document.querySelectorAll('.assistant a')].map((a) => a.href)"
    assert page.run(links) == ["https://example.org/y.png"]
    # Nothing was even blocked: the log is looked at after each test.


def test_the_policy_lets_no_inline_script_run(page: Page, server: Running) -> None:
    page.open(server.url)
    page.run(
        "const script = document.createElement('script'); script.textContent = 'window.hurt = 9';"
        "document.body.append(script)"
    )
    assert page.run("return window.hurt ?? null") is None
    assert any("Content Security Policy" in line for line in page.log())


def test_stop_keeps_what_came_and_the_rest_is_not_written(page: Page, server: Running) -> None:
    page.open(server.url)
    page.say("forever")
    page.until(lambda: "word3" in page.text(".turn.assistant .body"))
    assert page.find("#send").get_attribute("aria-label") == "Stop"
    page.keys(Keys.ESCAPE)
    page.wait_idle()
    assert "word3" in last(page)
    assert page.text(".note") == "Stopped."
    server.engine.wait_idle()  # type: ignore[attr-defined]
    assert server.engine.finishes[-1].reason == "cancelled"  # type: ignore[attr-defined]
    assert page.find("#send").get_attribute("aria-label") == "Send"


def test_versions_by_editing_and_asking_again(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("first")
    page.ask("second")
    page.keys(Keys.ARROW_UP)
    page.keys(" edited", Keys.ENTER)
    page.until(lambda: "You said: second edited" in page.text(".assistant .body"))
    page.wait_idle()
    assert page.texts(".turn .body") == [
        "first",
        "You said: first",
        "second edited",
        "You said: second edited",
    ]
    assert page.texts(".versions span") == ["2/2"]
    page.click(".versions [aria-label='Version before']")
    assert page.texts(".turn .body")[2:] == ["second", "You said: second"]
    page.click(".turn.assistant.last [aria-label='Another answer']")
    page.until(lambda: page.texts(".assistant .versions span") == ["2/2"])
    page.wait_idle()
    assert page.texts(".user .versions span") == ["1/2"]


def test_chats_survive_a_reload(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("remember me")
    page.keys(Keys.CONTROL + "k")
    page.keys(Keys.NULL)
    page.until(lambda: page.text("#title") == "New chat")
    page.ask("and me")
    page.reload()
    page.until(lambda: page.texts(".turn .body") == ["and me", "You said: and me"])
    page.until(lambda: page.texts(".chat a") == ["and me", "remember me"])
    page.click(".chat:last-child a")
    page.until(lambda: page.texts(".turn .body") == ["remember me", "You said: remember me"])
    page.find(".search input").send_keys("AND")
    page.until(lambda: page.texts(".chat a") == ["and me"])


def test_a_reload_in_the_middle_keeps_what_came(page: Page, server: Running) -> None:
    page.open(server.url)
    page.say("forever")
    page.until(lambda: "word3" in page.text(".turn.assistant .body"))
    page.reload()
    page.until(lambda: "word3" in page.text(".turn.assistant .body"))
    assert page.text(".note").startswith("Not finished")
    server.engine.wait_idle()  # type: ignore[attr-defined]


def test_a_chat_is_renamed_deleted_and_brought_back(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("a chat")
    page.click(".chat [aria-label^='Rename']")
    page.keys("Llamas", Keys.ENTER)
    page.until(lambda: page.texts(".chat a") == ["Llamas"])
    assert page.text("#title") == "Llamas"
    page.click(".chat [aria-label^='Delete']")
    page.until(lambda: page.texts(".chat a") == [])
    assert page.texts(".turn") == []
    page.click(".notice .text-button")
    page.until(lambda: page.texts(".chat a") == ["Llamas"])
    page.until(lambda: page.texts(".turn .body") == ["a chat", "You said: a chat"])
    page.click(".turn.user [aria-label^='Delete']")
    page.until(lambda: page.texts(".turn") == [])
    page.click(".notice:last-child .text-button")
    page.until(lambda: page.texts(".turn .body") == ["a chat", "You said: a chat"])


def test_two_tabs_keep_both_answers(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("shared")
    url = page.driver.current_url
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    try:
        page.driver.get(url)
        page.until(lambda: page.texts(".turn .body") == ["shared", "You said: shared"])
        page.ask("from two")
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)
    page.until(lambda: page.texts(".turn .body")[2:] == ["from two", "You said: from two"])


def test_an_error_in_the_middle_keeps_what_came(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("fail")
    assert last(page) == "It began well"
    assert page.text(".problem p")
    page.click(".problem .retry")
    page.until(lambda: page.texts(".assistant .versions span") == ["2/2"])
    page.wait_idle()
    page.log()


def test_a_server_that_is_away_is_found_again(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("hello")
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.ask("are you there")
    assert "does not answer" in page.text(".problem p")
    assert page.text("#model-name") == "Server not reachable"
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    page.until(lambda: page.text("#model-name") == "tiny-llama")
    page.click(".problem .retry")
    page.until(lambda: last(page) == "You said: are you there")
    assert page.texts(".problem") == []
    page.wait_idle()
    page.log()


def test_a_busy_server_is_waited_for(page: Page) -> None:
    engine = FakeEngine(script, slots=1)
    with running_server(engine, max_waiting=0) as running:
        page.open(running.url)
        page.say("forever")
        page.until(lambda: "word" in page.text(".assistant .body"))
        page.click(".new-chat")
        page.say("hello")
        page.until(lambda: re.fullmatch(r"\d+ s", page.text(".countdown")), "a countdown")
        assert "Asking again in" in page.text(".problem")
        engine.requests.clear()
        page.until(lambda: page.texts(".chat a .busy"))
        page.click(".chat:last-child a")
        page.until(lambda: page.text(".note") == "" and page.texts(".turn.writing"))
        page.click("#send")
        page.wait_idle()
        page.click(".chat:not(.open) a")
        page.until(lambda: page.text(".assistant .body") == "You said: hello")
        page.wait_idle()
    assert all("429" in line for line in page.log())


def test_the_key_is_asked_for_and_kept_for_the_session(page: Page) -> None:
    with running_server(FakeEngine(script), api_keys=["sesame"]) as running:
        page.open(running.url)
        page.until(lambda: page.run("return document.querySelector('#key-dialog').open"))
        page.find("#key-field").send_keys("wrong", Keys.ENTER)
        page.until(lambda: page.run("return document.querySelector('#key-field').value") == "")
        page.until(lambda: page.run("return document.querySelector('#key-dialog').open"))
        page.find("#key-field").send_keys("sesame", Keys.ENTER)
        page.until(lambda: page.text("#model-name") == "tiny")
        page.ask("hello")
        assert last(page) == "You said: hello"
        page.reload()
        page.until(lambda: page.text("#model-name") == "tiny")
        assert page.run("return JSON.stringify(localStorage)").find("sesame") < 0
    assert all("401" in line for line in page.log())


def test_settings_go_with_the_request_and_stay(page: Page, server: Running) -> None:
    page.open(server.url)
    page.click("#settings-button")
    page.find("#system").send_keys("Be brief.")
    field = page.find("#set-temperature")
    field.clear()
    field.send_keys("3")
    assert "from 0 to 2" in page.text(".field-problem")
    field.clear()
    field.send_keys("0")
    page.find("#set-max_tokens").send_keys("6")
    page.find("#set-seed").send_keys("11")
    page.find("#stop").send_keys("END")
    page.ask("hello")
    request = server.engine.requests[-1]  # type: ignore[attr-defined]
    assert (request.sampling.temperature, request.sampling.seed) == (0, 11)
    assert (request.max_tokens, request.stop) == (6, ("END",))
    assert b"system\nBe brief." in bytes(number for number in request.prompt if number < 256)
    assert page.text(".note") == "Ended at the limit of tokens."
    page.reload()
    value = "return document.querySelector(arguments[0]).value"
    assert page.run(value, "#set-temperature") == "0"
    assert page.run(value, "#system") == "Be brief."
    page.click("#settings-button")
    page.click(".panel-head .text-button")
    assert page.run(value, "#set-temperature") == "0.7"


def test_scrolling_up_is_respected(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("paragraphs")
    page.until(lambda: page.run(TO_THE_END) < 2, "the end in view")
    page.say("forever")
    page.until(lambda: "word3" in last(page))
    page.run("document.querySelector('#scroller').scrollTop = 100")
    before = last(page)
    page.until(lambda: len(last(page)) > len(before) + 40)
    assert page.run("return document.querySelector('#scroller').scrollTop") == 100
    page.click("#newest")
    page.until(lambda: page.run(TO_THE_END) < 2)
    page.click("#send")
    page.wait_idle()
    assert page.run("return document.activeElement.id") == "message"


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_scrolls_one_way_only(page: Page, server: Running, width: int) -> None:
    page.open(server.url, width, 640)
    page.ask("markdown " + "unbroken" * 12)
    document, scroller, window = page.run(WIDTHS)
    assert (document, window) == (width, width)
    assert scroller <= width
    assert page.run(SMALL_TARGETS) == []
    page.click("#sidebar-button")
    assert page.run("return document.querySelector('dialog.sidebar-place').matches(':modal')")
    assert page.run(SMALL_TARGETS) == []
    page.click(".new-chat")
    page.until(lambda: page.texts(".turn") == [])
    assert not page.run("return document.querySelector('dialog.sidebar-place').open")
    page.click("#settings-button")
    assert page.run("return document.querySelector('dialog.settings-place').matches(':modal')")
    page.keys(Keys.ESCAPE)
    page.until(lambda: not page.run("return document.querySelector('dialog.settings-place').open"))


def test_by_keyboard_alone(page: Page, server: Running) -> None:
    page.open(server.url)
    focused = "return document.activeElement.className"
    for _ in range(12):
        page.keys(Keys.SHIFT + Keys.TAB, Keys.NULL)
        if page.run(focused) == "skip":
            break
    assert page.run(focused) == "skip"
    page.keys(Keys.ENTER)
    page.keys("one", Keys.SHIFT + Keys.ENTER, Keys.NULL, "two", Keys.ENTER)
    page.until(lambda: "You said" in page.text(".assistant .body"))
    page.wait_idle()
    assert page.text(".user .body") == "one\ntwo"
    names = []
    for _ in range(18):
        page.keys(Keys.SHIFT + Keys.TAB, Keys.NULL)
        names.append(page.run(FOCUSED))
    reached = {name for name, _ in names}
    assert {"Copy", "Edit", "Another answer", "Settings", "Theme: As the system"} <= reached
    assert [name for name, seen in names if not seen] == []


def test_what_a_screen_reader_is_told(page: Page, server: Running) -> None:
    page.open(server.url)
    page.ask("hello")
    told = page.texts("#live p")
    assert told == ["The model is answering.", "You said: hello", "End of the answer."]
    assert page.run(UNNAMED) == []
    assert page.run(DANGLING) == []
    assert page.run("return document.querySelectorAll('h1').length") == 1
    assert page.run("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Page, server: Running, scheme: str) -> None:
    page.media(prefers_color_scheme=scheme)
    page.open(server.url)
    page.ask("markdown")
    page.ask("fail")
    page.click("#settings-button")
    page.click(".turn.user:last-of-type [aria-label='Copy'], .turn.user [aria-label='Copy']")
    page.run("document.querySelector('.chat [aria-label^=Delete]').focus()")
    pairs = page.run(COLOURS)
    assert len(pairs) >= 6
    for pair, where in pairs:
        text, behind = json.loads(pair)
        assert contrast(text, behind) >= 4.5, f"{where} has {contrast(text, behind):.2f}"
    page.log()


def test_the_theme_follows_the_system_until_it_is_chosen(page: Page, server: Running) -> None:
    back = "return getComputedStyle(document.body).backgroundColor"
    page.media(prefers_color_scheme="light")
    page.open(server.url)
    light = page.run(back)
    page.media(prefers_color_scheme="dark")
    dark = page.run(back)
    assert light != dark
    page.click("#theme-button")
    assert page.run(back) == light
    page.reload()
    assert page.run(back) == light
    page.click("#theme-button")
    page.media(prefers_color_scheme="light")
    assert page.run(back) == dark
    page.click("#theme-button")
    assert page.run(back) == light


def test_no_motion_where_none_is_wanted(page: Page, server: Running) -> None:
    page.media(prefers_reduced_motion="reduce")
    page.open(server.url)
    page.say("forever")
    page.until(lambda: page.texts(".turn.writing"))
    assert page.run("return document.getAnimations().length") == 0
    page.click("#send")
    page.wait_idle()
    page.media()


def test_a_failed_save_is_told(page: Page, server: Running) -> None:
    page.open(server.url)
    page.run(
        "IDBObjectStore.prototype.put = () => {"
        " throw new DOMException('no room', 'QuotaExceededError'); }"
    )
    page.ask("hello")
    page.until(lambda: "storage is full" in page.text(".notice"))
    assert last(page) == "You said: hello"


def test_export_and_import(page: Page, server: Running, tmp_path: Path) -> None:
    page.open(server.url)
    page.ask("to take along")
    # What the button hands to the browser as a file.
    page.run(
        "HTMLAnchorElement.prototype.click = () => {};"
        "URL.createObjectURL = (blob) => {"
        " blob.text().then((text) => { window.written = text; }); return '#'; }"
    )
    page.click(".keep .text-button")
    page.until(lambda: page.run("return window.written ?? null"))
    file = tmp_path / "chats.json"
    file.write_text(page.run("return window.written"), encoding="utf-8")
    page.open(server.url)
    page.until(lambda: page.texts(".none") == ["No chats yet."])
    page.find("input[type=file]").send_keys(str(file))
    page.until(lambda: page.texts(".chat a") == ["to take along"])
    assert "1 chat imported" in page.text(".notice")
