"""The HTML page of runs: it says what the runs hold, shows what is missing, escapes text, and needs nothing else."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from landscape import claims, plots, report
from landscape import runs as folders
from landscape.errors import ContentError, FileProblem

EVIL = "<script>alert('x')</script> & \"quoted\" {{ 7 * 6 }}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The tags, the addresses and the text of a page; tags must be closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action", "data", "poster")]
        assert not any(k.startswith("on") for k, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def make_run(root, name, config, argv, found=None, metrics=(), done=True, **meta):
    folder = root / name
    (folder / "figures").mkdir(parents=True)
    (folder / "config.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in config.items()))
    (folder / "meta.json").write_text(json.dumps({"argv": argv, "torch": "2.14", "seconds": 12.5, **meta}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    if found is not None:
        (folder / "results.json").write_text(json.dumps(found))
    if done:
        (folder / "done").touch()
    return folder


def curve(*losses):
    return [{"epoch": n, "train_loss": v, "train_accuracy": 0.1 * n, "test_loss": v} for n, v in enumerate(losses, 1)]


@pytest.fixture
def root(tmp_path):
    """Two trainings, a third that is broken off, a measuring program, and a claim."""
    argv = ["elsewhere/main.py", "--net", "mlp", "--save_net", EVIL]
    one = make_run(tmp_path, "regions/a", {"net": "mlp", "lr": 0.1, "save_net": EVIL}, argv,
                   {"last": {"test_accuracy": 0.12345678, "test_loss": None}, "note": EVIL}, curve(2.0, 1.5))
    make_run(tmp_path, "regions/b", {"net": "mlp", "lr": 0.25, "save_net": ""}, [*argv[:3], "--lr", "0.25"],
             {"last": {"test_accuracy": 0.98765}, "extra": 7}, curve(2.0, float("nan"), 3.0))
    broken = make_run(tmp_path, "regions/c", {"net": "mlp", "lr": 0.5, "save_net": ""}, argv[:3], None, curve(9.0),
                      done=False)
    (broken / "resume.pt").touch()
    make_run(tmp_path, "star/d", {"points": 11}, ["/x/star/barriers.py", "-a", "two words"],
             {f"pair.{n}": n / 7 for n in range(60)})
    fig, ax = plots.figure()
    ax.plot(np.arange(4))
    plots.save(fig, one / "figures" / f"curves of {EVIL.split('/')[0]}", ["png", "svg"])
    rows = "".join(f"{n},{n / 3},\n" for n in range(50))
    (one / "table.csv").write_text(f"{EVIL.replace(',', ' ')[:8]},value,empty\n{rows}")
    claim = claims.Claim("a:b", "Paper", "Figure 1", EVIL, 0.4321, 0.1, 0.9, 3, None, "seeds", "not decided", "run it")
    claims.write(tmp_path / "claims.json", [claim])
    return tmp_path


def test_the_page_holds_everything_and_nothing_from_outside(root, capsys):
    assert report.main([str(root)]) == 0
    assert "4 runs, 1 of them not finished, 1 claims" in capsys.readouterr().out
    text = (root / "report.html").read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert page.addresses and all(a.startswith(("data:image/", "#")) for a in page.addresses)
    for said in ("url(", "@import", "http:", "https:"):
        assert said not in text.lower()
    for number in ("0.123457", "0.98765", "7", "0.4321", "12.5", f"{59 / 7:.6g}"):
        assert number in page.text, number
    assert 'title="0.12345678"' in text  # all digits
    for words in ("finished", "broken off after epoch 1: its command goes on", "not decided", "table.csv, 50 rows",
                  "python main.py --net mlp --lr 0.25", "python -m star.barriers -a 'two words'",
                  "Settings that differ"):
        assert any(words in t for t in page.text), words
    assert [t for t in page.text if t == "lr"] == ["lr"]
    assert page.text.index("lr") < page.text.index("net")  # what differs stands first


def test_missing_and_broken_numbers_are_shown_as_such(root):
    report.main([str(root), "--out", str(root / "x.html")])
    text = (root / "x.html").read_text()
    assert '<td class="missing"\n title="None">–</td>' in text
    assert report.shown(float("nan")) == "NaN" and report.shown(float("-inf")) == "infinite"
    assert report.shown(None) == "–" and report.shown(1 / 3) == "0.333333" and report.shown([1, 2]) == "[1, 2]"
    held = report.gathered(root / "regions/b", root)
    held["results"]["loss"] = float("nan")
    assert '<td class="broken"\n title="nan">NaN</td>' in report.page("t", [held], [])
    lines = report.curves_of([{**held, "number": 1}]).axes[0].lines
    assert np.isnan(lines[0].get_ydata()).tolist() == [False, True, False]
    assert report.curves_of([{**held, "metrics": []}]) is None


def test_text_is_text(root):
    report.main([str(root), "--title", EVIL, "--out", str(root / "x.html")])
    text = (root / "x.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "{{ 7 * 6 }}" in text
    page = Page(text)
    assert page.text.count(EVIL) >= 4  # title, heading, setting, result, claim


def test_figures_stand_side_by_side_and_one_run_is_enough(root):
    shutil.copytree(root / "regions/a/figures", root / "regions/b/figures", dirs_exist_ok=True)
    name = next((root / "regions/a/figures").glob("*.png")).stem
    held = [report.gathered(root / "regions" / k, root) for k in "ab"]
    found = report.section("main.py", held)
    assert [run["number"] for run, _ in found["figures"][name]] == [1, 2]
    assert report.main([str(root / "regions/a")]) == 0
    text = (root / "regions/a/report.html").read_text()
    assert "Settings that differ" not in text and "3 settings</summary>" in text
    assert report.main([str(root / "regions/a")]) == 0  # the page is no part of the run
    assert (root / "regions/a/report.html").read_text() == text


def test_what_is_no_run_is_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileProblem, match="no run below .*empty"):
        report.main([str(tmp_path / "empty")])
    with pytest.raises(FileProblem, match="is not a folder"):
        report.main([str(tmp_path / "nowhere")])
    with pytest.raises(FileProblem, match="is missing"):
        report.main([str(root), "--claims", str(root / "none.json")])
    (root / "star/d/results.json").write_text("{")
    with pytest.raises(ContentError, match="results.json is not JSON"):
        report.main([str(root)])
    (root / "star/d/results.json").write_text("[1]")
    with pytest.raises(ContentError, match="results.json holds no mapping"):
        report.main([str(root)])


def test_a_browser_draws_the_page(root, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome on this machine")
    from PIL import Image

    report.main([str(root)])
    shot = tmp_path / "shot.png"
    subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                    f"--screenshot={shot}", "--window-size=1300,2000", (root / "report.html").as_uri()],
                   capture_output=True, check=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    ink = (pixels < 128).all(2)
    assert pixels.shape[:2] == (2000, 1300) and 0.002 < ink.mean() < 0.2
    assert ink[:1000].any(1).sum() > 200  # lines of text, from the top on
    coloured = (pixels.max(2).astype(int) - pixels.min(2)) > 80
    assert coloured.sum() > 1000  # the curves
    assert folders.read_json(root / "regions/a/results.json")["note"] == EVIL
