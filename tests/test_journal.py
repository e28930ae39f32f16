import pytest

from keras_mtp.journal import Journal

pytestmark = pytest.mark.any_backend
SOURCES = [[[1, 2], [3]], [[4]], [[5, 6]]]


def _work(path, *, about="x", sources=SOURCES, most=99):
    """Answers, and for which of them something had to be done."""
    made = []
    journal = Journal(path, about)

    def make(source):
        if len(made) == most:
            raise ConnectionError("cut off")
        made.append(source)
        return [[10 * token for token in row] for row in source]

    return [journal.piece(source, lambda source=source: make(source)) for source in sources], made


ANSWERS = _work(None)[0]


def test_it_goes_on_where_it_was_cut_off(tmp_path):
    with pytest.raises(ConnectionError):
        _work(tmp_path / "a/j", most=2)
    assert _work(tmp_path / "a/j") == (ANSWERS, SOURCES[2:])
    assert _work(tmp_path / "a/j") == (ANSWERS, [])


def test_nothing_is_kept_without_a_file(tmp_path):
    assert _work(None) == _work(None) == (ANSWERS, SOURCES)
    assert not list(tmp_path.iterdir())


def test_what_belongs_to_other_work_is_made_again(tmp_path):
    _work(tmp_path / "j")
    assert _work(tmp_path / "j", about="y") == (ANSWERS, SOURCES)
    other = [SOURCES[0], [[7]], SOURCES[2]]
    assert _work(tmp_path / "j", about="y", sources=other)[1] == other[1:]


def test_every_bit_counts_and_so_does_every_byte(tmp_path):
    _work(tmp_path / "j")
    whole = (tmp_path / "j").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for place in range(len(whole)):
        whole_lines = sum(end <= place for end in ends)
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]):
            (tmp_path / "j").write_bytes(damaged)
            assert _work(tmp_path / "j") == (ANSWERS, SOURCES[whole_lines:])
            assert (tmp_path / "j").read_bytes() == whole
