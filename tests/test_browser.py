"""The report and the search page in a real browser: maps unpack, can be pointed at and walked through by keys, tables sort, both themes, no errors."""

import json
import re
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest

from retrieval.eval.report.artifacts import clusters_section, run_section, sweep_section
from retrieval.eval.report.items import Items, items_section
from retrieval.eval.report.page import render
from retrieval.images import Images

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="browser: there is no chromium here")
# What a test asks of the page is run in it, and left in its title.
PROBE = """<script>
addEventListener("load", async () => {
  const all = await Promise.all(maps), told = {};
  const wait = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)));
  try { %s } catch (error) { told.error = String(error); }
  document.title = JSON.stringify(told);
});
</script></body>"""


@pytest.fixture(scope="module")
def page():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(12), 20)
    vectors = rng.normal(size=(12, 16))[codes] + 0.5 * rng.normal(size=(240, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    pictures = Images(rng.integers(0, 255, (240, 8, 8), dtype=np.uint8), None, "")
    ids, labels = [f"item {i}" for i in range(240)], [f"class {c}" for c in codes]
    texts = [f"<img src=x onerror=alert(1)> text {i}" for i in range(240)]
    sides = [
        Items("before", vectors[::-1].copy(), labels, ids, texts=texts, pictures=pictures),
        Items("after", vectors, labels, ids, texts=texts, pictures=pictures),
    ]
    point = {"label": "hcl kappa=2", "method": "hcl", "setting": {"kappa": 2.0}, "runs": 1, "mean": 0.5,
             "interval": (0.4, 0.6), "against_best": None, "verdict": "best", "ess": 3.0, "warnings": []}  # fmt: skip
    sweep = {"points": [point], "chosen_by": "map@r", "trained_on": 1, "data": "d", "trains": "a head", "model": "m", "queries": 2,
             "untrained": 0.1, "recommended": {"label": "l", "command": "c"}, "not_shown_worse": [], "against_untrained": {"verdict": "better"}, "failed": []}  # fmt: skip
    return render("A page", "", [items_section("both", "", sides, way="pca"), sweep_section("sweep", sweep)], "foot")


def opened(page, folder, script, *flags):
    """What a script left behind in the page, and what the browser complained of."""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", PROBE % script), "utf-8")
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1000,900",
             f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", *flags, "--dump-dom", path.as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), complaints


def test_the_map_unpacks_and_is_walked_through_by_keys(page, tmp_path):
    told, complaints = opened(
        page,
        tmp_path,
        """
        const canvas = document.querySelector("canvas"), output = document.querySelector("output");
        const press = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
        told.ready = document.querySelector(".map").dataset.ready;
        told.named = [canvas.tabIndex, canvas.getAttribute("role"), output.getAttribute("aria-live")];
        press("ArrowRight"); told.first = output.textContent; told.i = all[0].told;
        const [x, y] = all[0].views[0].at(all[0].told);
        press("ArrowRight"); told.second = output.textContent;
        told.further = all[0].views[0].at(all[0].told)[0] > x;
        press("+"); told.side = all[0].views[0].side; press("0"); told.all = all[0].views[0].side;
        told.pictures = document.querySelectorAll("output img").length;
        const draw = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        told.drawn = draw.some((value) => value > 0);
        """,
    )
    assert "error" not in told and not complaints, (told, complaints)
    assert told["ready"] == "240" and told["named"] == [0, "application", "polite"] and told["drawn"]
    assert told["first"] == f"class {told['i'] // 20} <img src=x onerror=alert(1)> text {told['i']}"
    assert told["second"] != told["first"] and told["further"] and told["pictures"] == 0
    assert told["side"] == pytest.approx(1 / 1.5) and told["all"] == 1


def test_pointing_at_an_item_and_choosing_a_class(page, tmp_path):
    told, complaints = opened(
        page,
        tmp_path,
        """
        const canvas = document.querySelector("canvas"), view = all[0].views[0];
        const [x, y] = view.at(7), size = Math.min(canvas.clientWidth, canvas.clientHeight);
        const left = (canvas.clientWidth - size) / 2, top = (canvas.clientHeight - size) / 2;
        const box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + left + x * size, clientY: box.top + top + y * size, bubbles: true }));
        const [a, b] = view.at(all[0].told);
        told.near = Math.hypot(a - x, b - y);
        const select = document.querySelector("select");
        told.classes = select.options.length;
        select.value = select.options[3].value; select.dispatchEvent(new Event("change"));
        told.shown = [...Array(240).keys()].filter((i) => all[0].shows(i)).length;
        """,
    )
    assert "error" not in told and not complaints, (told, complaints)
    assert told["near"] < 0.02 and told["classes"] == 13 and told["shown"] == 20


def test_tables_sort(page, tmp_path):
    told, complaints = opened(
        page,
        tmp_path,
        """
        const table = document.querySelector("table.sortable"), button = table.querySelectorAll("th button")[3];
        const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[3].textContent));
        button.click(); told.up = column(); told.sort = button.parentElement.getAttribute("aria-sort");
        button.click(); told.down = column();
        """,
    )
    assert "error" not in told and not complaints, (told, complaints)
    assert told["up"] == sorted(told["up"]) and told["down"] == told["up"][::-1] and told["sort"] == "ascending"
    assert len(set(told["up"])) > 1


def test_every_control_can_be_reached_and_has_a_name(page, tmp_path):
    told, _ = opened(
        page,
        tmp_path,
        """
        const controls = [...document.querySelectorAll("a, button, select, canvas, summary, [tabindex]")];
        told.unnamed = controls.filter((e) => !(e.ariaLabel || e.textContent.trim() || e.closest("label"))).map((e) => e.outerHTML.slice(0, 80));
        told.unreachable = controls.filter((e) => e.tabIndex < 0).map((e) => e.outerHTML.slice(0, 80));
        told.pictures = [...document.querySelectorAll("img")].filter((e) => !e.alt).length;
        told.plots = [...document.querySelectorAll("svg")].filter((e) => !e.closest("[role=img][aria-label]")).length;
        told.sections = [...document.querySelectorAll("section")].filter((e) => !document.getElementById(e.getAttribute("aria-labelledby"))).length;
        told.ids = [...document.querySelectorAll("[id]")].filter((e) => !e.closest("svg")).map((e) => e.id);
        told.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
        told.heads = document.querySelectorAll("th:not([scope])").length;
        """,
        "--window-size=360,800",
    )
    assert "error" not in told, told
    assert (told["unnamed"], told["unreachable"]) == ([], [])
    assert (told["pictures"], told["plots"], told["sections"], told["heads"]) == (0, 0, 0, 0)
    assert len(set(told["ids"])) == len(told["ids"]) and told["wide"] <= 0


@pytest.mark.parametrize("dark", [True, False])
def test_light_and_dark(page, tmp_path, dark):
    script = """
        const style = getComputedStyle(document.body);
        told.ground = style.backgroundColor; told.ink = style.color;
        told.plot = getComputedStyle(document.querySelector("svg text")).fill;
    """
    told, _ = opened(page, tmp_path, script, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    light = {"ground": "rgb(255, 255, 255)", "ink": "rgb(29, 35, 43)", "plot": "rgb(29, 35, 43)"}
    other = {"ground": "rgb(20, 24, 29)", "ink": "rgb(232, 236, 241)", "plot": "rgb(232, 236, 241)"}
    assert told == (other if dark else light)


def test_a_finger_points_by_touching_and_scrolls_past_the_map(page, tmp_path):
    told, complaints = opened(
        page,
        tmp_path,
        """
        const canvas = document.querySelector("canvas"), view = all[0].views[0], box = canvas.getBoundingClientRect();
        const [x, y] = view.at(7), size = Math.min(canvas.clientWidth, canvas.clientHeight);
        const at = { clientX: box.left + (canvas.clientWidth - size) / 2 + x * size, clientY: box.top + (canvas.clientHeight - size) / 2 + y * size };
        canvas.setPointerCapture = () => {};
        canvas.dispatchEvent(new PointerEvent("pointerdown", { ...at, pointerType: "touch", bubbles: true }));
        told.touched = document.querySelector("output").textContent;
        canvas.dispatchEvent(new PointerEvent("pointercancel", { bubbles: true }));
        told.held = view.held;
        told.whole = canvas.style.touchAction; view.zoom(2); told.part = canvas.style.touchAction;
        """,
    )
    assert "error" not in told and not complaints, (told, complaints)
    assert told["touched"].startswith("class ") and told["held"] is None
    assert (told["whole"], told["part"]) == ("pan-y", "none")


def test_wide_tables_scroll_by_themselves_on_a_phone(tmp_path):
    each = {"before": 0.1, "after": 0.2, "difference": 0.1, "interval": (0.0, 0.2), "verdict": "better"}
    names = ("r@1", "map@r", "knn@20", "a-metric-of-a-very-long-name-that-does-not-break")
    metrics = {"held-out": {"queries": 3, "metrics": dict.fromkeys(names, each)}}
    sides = [
        Items(f"encoder-{i}", np.eye(6, 9, dtype=np.float32) + 0.1, list("aabbcc"), list("012345")) for i in range(5)
    ]
    sides = [Items(s.name, s.vectors + np.float32(i) / 9, s.labels, s.ids) for i, s in enumerate(sides)]
    clusters = {"metrics": dict.fromkeys(names, 0.1), "counts": {"n": 3, "queries": 3}, "intervals": dict.fromkeys(names, (0.1, 0.2)), "intervals_by_class": dict.fromkeys(names, (0.1, 0.2))}  # fmt: skip
    sections = [
        run_section("run", {}, metrics, [{"loss": 1.0}]),
        items_section("x", "", sides, way="pca"),
        clusters_section("c", clusters),
    ]
    told, _ = opened(
        render("A page", "", sections, ""),
        tmp_path,
        """
        document.body.style.width = "360px"; document.body.style.margin = 0;  // a window is no narrower than 500
        await wait();
        told.wide = [...document.querySelectorAll("table")].filter((e) => !e.closest(".scroll, .scroll-x") && e.getBoundingClientRect().right > 345).map((e) => e.innerText);
        told.tables = document.querySelectorAll("table").length;
        """,
    )
    assert "error" not in told and told["wide"] == [] and told["tables"] >= 5


SEARCH = """<script>
let asks = [], answer = null;
history.pushState = () => {};
fetch = async (address, options) => {
  asks.push([address, options && options.method]);
  if (address === "api/about") return { ok: true, json: async () => (%s) };
  return answer();
};
const hits = (...ids) => () => ({ ok: true, json: async () => ({ ms: 1, how: { way: "exact" }, results: [{ hits: ids.map((id) => ({ score: 1, id, label: "", text: "<img src=x>", url: "https://a.example/" + id, bad: "javascript:alert(1)" })) }] }) });
answer = hits("3", "4");
</script>"""
ABOUT = {"index": "i", "count": 9, "dim": 2, "metric": "cosine", "recall": None, "factory": "Flat", "encoder": "e",
         "takes": ["text", "image"], "labels": ["a"], "items": "text"}  # fmt: skip


def searched(folder, script):
    """What a script left behind in the search page, whose server is a function."""
    static = files("retrieval.web") / "static"
    code = (static / "page.js").read_text("utf-8").replace("start().catch", "const ready = start(); ready.catch")
    page = (static / "page.html").read_text("utf-8")
    page = page.replace(
        '<script src="page.js"></script>', SEARCH % json.dumps(ABOUT) + f"<script>const maps = [];{code}</script>"
    )
    return opened(page, folder, "await ready; " + script)[0]


def test_a_search_page_says_what_went_wrong(tmp_path):
    told = searched(
        tmp_path,
        """
        const line = document.getElementById("status");
        answer = () => { throw new TypeError("Failed to fetch"); };
        await ask({ query: "a" }); told.down = line.textContent;
        answer = () => ({ ok: false, status: 502, json: async () => JSON.parse("<html>") });
        await ask({ query: "a" }); told.proxy = [line.textContent, line.className];
        """,
    )
    assert told == {
        "down": "the server does not answer; is it still running?",
        "proxy": ["no answer of the search server (status 502)", "bad"],
    }


def test_a_search_page_marks_the_item_asked_and_links_addresses(tmp_path):
    told = searched(
        tmp_path,
        """
        await ask({ id: "3" });
        told.items = [...document.querySelectorAll("li")].map((e) => [...e.querySelectorAll(".label")].map((l) => l.textContent));
        told.links = [...document.querySelectorAll("a")].map((e) => [e.href, e.rel]);
        told.buttons = [...document.querySelectorAll("li button")].map((e) => e.ariaLabel);
        told.pictures = document.querySelectorAll("li img").length;
        """,
    )
    assert told == {
        "items": [["the item itself"], []],
        "links": [[f"https://a.example/{i}", "noopener noreferrer"] for i in "34"],
        "buttons": ["more like this: 3", "more like this: 4"],
        "pictures": 0,
    }


def test_a_search_page_asks_what_it_shows(tmp_path):
    told = searched(
        tmp_path,
        """
        const files = new DataTransfer();
        files.items.add(new File(["x"], "x.png", { type: "image/png" }));
        form.picture.files = files.files;
        await ask({ picture: form.picture.files[0] });
        await ask({ id: "3" });
        form.requestSubmit(); await new Promise((done) => setTimeout(done, 50));
        told.last = asks[asks.length - 1];
        told.chosen = form.picture.files.length;
        told.hits = document.querySelectorAll("li").length;
        dispatchEvent(new PopStateEvent("popstate"));
        told.after = [document.querySelectorAll("li").length, document.getElementById("status").textContent];
        """,
    )
    assert "error" not in told, told
    assert "id=3" in told["last"][0] and told["last"][1] is None and told["chosen"] == 0
    assert told["hits"] == 2 and told["after"] == [0, ""]
