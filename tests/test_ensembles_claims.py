"""Claims of deep ensembles: which results count."""

import os

import pytest
import yaml

from ensembles import claims
from landscape import runs


def write(root, name, members=10, when=0, **settings):
    held = {"kind": "similarity", "nets": ["small_cnn"], "models": [{}] * members, "name": name}
    runs.write_json(root / name / "results.json", held)
    runs.write_bytes(root / name / "config.yaml", yaml.safe_dump({**claims.USUAL, **settings}).encode())
    runs.write_bytes(root / name / "done", b"")
    os.utime(root / name / "done", (when, when))


@pytest.mark.parametrize("change", [{"split": "train"}, {"max_size": 5}, {"late": 5}, {"which": "best"},
                                    {"align": "weights"}, {"source": "archive"}])
def test_the_usual_settings_count_before_more_members_and_newer_results(tmp_path, change):
    write(tmp_path, "a", members=20, when=9, **change)
    write(tmp_path, "b", when=2)
    write(tmp_path, "c", when=1)
    write(tmp_path, "d", members=9, when=9)
    (found,) = claims.found(tmp_path).values()
    assert found["name"] == "b"


def test_published_numbers_are_of_the_test_set():
    assert claims.known_of("small_cnn", {"split": "test"}) == claims.PUBLISHED["small_cnn"]
    assert claims.known_of("small_cnn", {"split": "train"}) == claims.known_of("mlp", {"split": "test"}) == {}
