import pytest

from data_specs.failures import Failure, failures_path, read_failures

FAILURE = Failure(index=3, id="a", path="a.mp4", stage="decode", error="E", message="m", attempts=1)


def test_any_text_survives(tmp_path):
    """Line separators of Unicode are not ends of lines here."""
    odd = Failure(index=1, id="x\u2028y", path="é\x85/\t.mp4", stage="decode", error="E", message="a\nb", attempts=2)
    failures_path(tmp_path, 7).parent.mkdir()
    failures_path(tmp_path, 7).write_text(odd.to_line() + "\n" + FAILURE.to_line() + "\n", encoding="utf-8")
    assert read_failures(tmp_path, 7) == [odd, FAILURE]
    assert read_failures(tmp_path, 8) == []


@pytest.mark.parametrize("line", ["", "[]", "{}", FAILURE.to_line()[:-4], FAILURE.to_line().replace("1}", '"1"}')])
def test_what_is_not_a_record_is_refused_with_its_place(line):
    with pytest.raises(ValueError, match="f:3: "):
        Failure.from_line(line, "f:3")
