"""Claims: what a verdict means, the file's round trip, the page, and refusals of damaged files."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape import claims
from landscape.errors import ContentError, FileProblem


def claim(**changes):
    values = dict(
        id="regions/within-resnet", paper="Somepalli et al. 2022", figure="Fig. 4", statement="R > .8 | same",
        value=0.8312, low=0.82, high=0.84, n=5, published=0.83, protocol="digits, 500 planes; over models",
        verdict="holds", command="bash scripts/fig_regions.sh",
    )  # fmt: skip
    return claims.Claim(**{**values, **changes})


NUMBERS = st.floats(-5, 5)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_verdicts_follow_the_interval(a, b, c, d):
    low, high = sorted((a, b))
    above, below = (claims.judge(low, high, c, direction) for direction in ("above", "below"))
    assert (above == "holds") == (low > c) and (above == "fails") == (high <= c)
    assert (below == "holds") == (high < c) and (below == "fails") == (low >= c)
    assert not above == below == "holds"
    bottom, top = sorted((c, d))
    inside = claims.judge(low, high, (bottom, top), "between")
    assert (inside == "holds") == (bottom < low and high < top)
    assert (inside == "fails") == (high <= bottom or low >= top) or inside == "holds"


def test_no_interval_decides_nothing():
    assert claims.judge(None, None, 0.5, "above") == "not decided"
    with pytest.raises(ValueError, match="above, below, between"):
        claims.judge(0, 1, 0.5, "over")
    with pytest.raises(ValueError, match="no interval"):
        claims.judge(1, 0, 0.5, "above")


def test_claims_survive_the_file_in_any_order(tmp_path):
    some = [claim(id="b", low=None, high=None, n=1, verdict="not decided", published=None), claim(id="a")]
    claims.write(tmp_path / "one.json", some)
    claims.write(tmp_path / "two.json", some[::-1])
    assert claims.read(tmp_path / "one.json") == some[::-1]
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_the_page_holds_every_claim_by_study(tmp_path, capsys):
    root = tmp_path / "results"
    claims.write(
        root / "double_descent" / "claims.json", [claim(id="peak", verdict="fails", published="≈ k = 10")]
    )
    claims.write(root / "regions" / "claims.json", [claim()])
    for _ in range(2):
        claims.main(["--results", str(root), "--out", str(tmp_path / "page.md")])
        text = (tmp_path / "page.md").read_text()
        assert text == claims.render(
            {s: claims.read(root / s / "claims.json") for s in ("regions", "double_descent")}
        )
    assert "2 claims of 2 studies" in capsys.readouterr().out
    assert text.index("## double descent") < text.index("## regions")
    assert "Claims: 1 holds, 1 fails, 0 not decided." in text
    row = next(line for line in text.splitlines() if line.startswith("| regions/within-resnet"))
    cells = ["Somepalli et al. 2022, Fig. 4", "R > .8 \\| same", "0.8312 [0.82, 0.84]", "5", "0.83",
             "**holds**", "digits, 500 planes; over models", "`bash scripts/fig_regions.sh`"]  # fmt: skip
    assert row == "| regions/within-resnet | " + " | ".join(cells) + " |"


def test_the_page_of_nothing_says_so(tmp_path):
    (tmp_path / "results").mkdir()
    claims.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "page.md")])
    assert "No claim is recorded yet." in (tmp_path / "page.md").read_text()
    with pytest.raises(FileProblem, match="is not a folder"):
        claims.main(["--results", str(tmp_path / "nowhere"), "--out", str(tmp_path / "page.md")])


@pytest.mark.parametrize("change", [
    {"verdict": "true"}, {"value": float("nan")}, {"n": 2.5}, {"n": True}, {"low": None}, {"low": 0.9},
    {"id": ""}, {"statement": None}, {"published": [1]}, {"command": ""},
], ids=str)  # fmt: skip
def test_a_claim_that_says_nothing_clear_is_refused(change):
    with pytest.raises(ContentError):
        claim(**change)


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "claims.json"
    good = dataclasses.asdict(claim())
    short = {k: v for k, v in good.items() if k != "n"}
    rows = [[short], [{**good, "extra": 1}], [good, good], [{**good, "verdict": "yes"}]]
    for text in ["{", "{}", "[1]", *map(json.dumps, rows)]:
        path.write_text(text)
        with pytest.raises(ContentError, match="claims.json"):
            claims.read(path)
    with pytest.raises(ContentError, match="more than one"):
        claims.write(path, [claim(), claim()])
