"""Reading checkpoints: what is there is found, what is wrong is refused in one line, and nothing else is touched."""

import contextlib
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import framed, write_index, write_safetensors
from hypothesis import example, given
from hypothesis import strategies as st

from normball.checkpoint import model, numpy_files, safetensors, sources, strict_json
from normball.checkpoint.errors import CheckpointError
from normball.checkpoint.model import open_model

INSTALLED = {name for name in ("safetensors",) if importlib.util.find_spec(name)}
THOROUGH = os.environ.get("NORMBALL_THOROUGH") == "1"
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(range(8))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Messages name files as they were given: relative to here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(*paths):
    """The one line that says why the model isn't read."""
    with pytest.raises(CheckpointError) as caught, open_model(paths):
        pass
    text = str(caught.value)
    assert text.isprintable()
    return text


def found(*paths):
    """What is read: names, dtypes, shapes and the tensors' bytes."""
    with open_model(paths) as opened:
        return {t.name: (t.dtype, t.shape, content(t)) for t in opened.tensors}


def content(tensor):
    buffer = bytearray(tensor.nbytes)
    tensor.source.read_into(tensor.begin, memoryview(buffer))
    return bytes(buffer)


def put(path, raw):
    """A new file: some file systems take their time over what is written over another."""
    Path(path).unlink(missing_ok=True)
    Path(path).write_bytes(raw)


def accepted(path):
    """Whether it is read. Anything but a CheckpointError is a failure."""
    try:
        open_model([path]).__exit__()
    except CheckpointError as error:
        shown = str(error)
    else:
        return True
    assert shown.isprintable(), repr(shown)
    return False


# --- what is there is found ---------------------------------------------------------------------------------------


def test_safetensors_of_every_dtype():
    bits = safetensors.DTYPES
    tensors = {word: (word, bytes(n % 251 for n in range(12 * bits[word] // 8)), (3, 4)) for word in bits}
    write_safetensors("all.safetensors", tensors, {"format": "pt", "ü": '"{}\n'})
    expected = {name: (word, shape, raw) for name, (word, raw, shape) in tensors.items()}
    assert found("all.safetensors") == expected
    pytest.importorskip("safetensors", reason="without it nobody else says which dtypes there are")
    from safetensors import deserialize

    theirs = {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in _official(deserialize)}
    short = {word.replace("_", ""): word for word in bits}
    assert {n: (short.get(word, word), shape[:0], raw) for n, (word, shape, raw) in theirs.items()} == {
        name: (word, (), raw) for name, (word, _, raw) in expected.items()
    }


def _official(deserialize):
    return deserialize(Path("all.safetensors").read_bytes())


def test_safetensors_in_the_order_of_the_file_whatever_that_of_the_header():
    header = {"b": {**F32, "data_offsets": [8, 16]}, "none": {**F32, "shape": [0], "data_offsets": [8, 8]}, "a": F32}
    Path("x.safetensors").write_bytes(framed(header, EIGHT + EIGHT[::-1]))
    assert list(found("x.safetensors")) == ["a", "none", "b"]
    with open_model(["x.safetensors"]) as opened:
        (file,) = opened.files
        assert (file.kind, str(file.path), file.nbytes) == ("safetensors", "x.safetensors", os.path.getsize(file.path))
        assert file.head == file.nbytes - 16 == file.tensors[0].begin
        assert not any(t.fortran or t.swapped for t in file.tensors)


@pytest.mark.parametrize(
    "name", ["", "..", "/etc/passwd", "../../x", "a b", "größe", "\u202eevil", "\U0001f600", "x" * 4096]
)
def test_names_that_do_no_harm_are_names(name):
    write_safetensors("x.safetensors", {name: ("F32", EIGHT, (2,))})
    assert found("x.safetensors") == {name: ("F32", (2,), EIGHT)}


@pytest.mark.parametrize(
    "raw", [b"{}", b"{} \n\t\r ", b"{ }", b'{"__metadata__":{}}', b'{"__metadata__":{"a":"{[\\"\\ud83d\\ude00"}}']
)
def test_safetensors_without_tensors(raw):
    Path("x.safetensors").write_bytes(framed(raw))
    assert found("x.safetensors") == {}


def test_folders():
    one, two = {"a": ("F32", EIGHT, (2,))}, {"b": ("I8", EIGHT, (8,)), "c": ("BF16", EIGHT, (2, 2))}
    folder = write_index("m", {"m-1.safetensors": one, "m-2.safetensors": two})
    with open_model([folder]) as opened:
        assert [str(f.path) for f in opened.files] == ["m/m-1.safetensors", "m/m-2.safetensors"]
        assert [t.name for t in opened.tensors] == ["a", "b", "c"]
        assert (opened.folder, opened.index) == (folder, folder / "model.safetensors.index.json")
    os.unlink("m/model.safetensors.index.json")
    assert list(found("m/m-2.safetensors", "m/m-1.safetensors")) == ["b", "c", "a"]
    os.unlink("m/m-2.safetensors")
    with open_model(["m"]) as opened:
        assert [t.name for t in opened.tensors] == ["a"]
        assert (opened.folder, opened.index) == (Path("m"), None)


def test_links_inside_a_folder_and_links_that_the_user_names_are_followed():
    folder = write_index("m", {"s.safetensors": {"a": ("F32", EIGHT, (2,))}})
    (folder / "blobs").mkdir()
    os.rename("m/s.safetensors", "m/blobs/x")
    os.symlink("blobs/x", "m/s.safetensors")
    os.symlink("m", "link")
    os.symlink("m/s.safetensors", "s.safetensors")
    assert found("m") == found("link") == found("s.safetensors") == {"a": ("F32", (2,), EIGHT)}


ARRAYS = {
    "f8": np.arange(6.0).reshape(2, 3),
    "f4": np.arange(6, dtype="f4").reshape(3, 2, 1),
    "f2": np.arange(3, dtype="f2"),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3)),
    "whole": np.arange(5, dtype="u2"),
    "flags": np.array([True, False]),
    "complex": np.ones(2, "c8"),
    "wide": np.ones(2, "c16"),
    "words": np.array(["a", "bc"]),
    "times": np.zeros(2, "M8[s]"),
    "fields": np.zeros(2, [("a", "i4"), ("b", "f4", 2)]),
    "bytes": np.zeros(3, "V2"),
}
WORDS = [
    "F64",
    "F32",
    "F16",
    "F32",
    "F64",
    "U16",
    "BOOL",
    "C64",
    "complex128",
    "str64",
    "datetime64[s]",
    "void96",
    "void16",
]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save):
    save("x.npz", **ARRAYS)
    assert found("x.npz") == {
        name: (word, array.shape, array.tobytes()) for (name, array), word in zip(ARRAYS.items(), WORDS, strict=True)
    }


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy(version):
    for array, word in zip(ARRAYS.values(), WORDS, strict=True):
        with open("layer.npy", "wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that others can't read these versions
            np.lib.format.write_array(file, np.asarray(array), version)
        with open_model(["layer.npy"]) as opened:
            (file,) = opened.files
            assert (file.kind, file.head) == ("npy", os.path.getsize("layer.npy") - array.nbytes)
        assert found("layer.npy") == {"layer": (word, array.shape, array.tobytes())}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_says_how_it_lies(fortran, swapped):
    array = np.asarray(np.arange(6.0).reshape(2, 3), order="F" if fortran else "C")
    np.save("x.npy", array.astype(array.dtype.newbyteorder("S" if swapped else "=")))
    with open_model(["x.npy"]) as opened:
        (tensor,) = opened.tensors
    assert (tensor.dtype, tensor.fortran, tensor.swapped) == ("F64", fortran, swapped)


def test_npy_of_python_2_without_a_word():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }"
    Path("x.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + EIGHT)
    assert found("x.npy") == {"x": ("F32", (2,), EIGHT)}


def test_bfloat16_of_npy_is_left_alone():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="it makes the array")
    np.save("x.npy", np.ones(2, ml_dtypes.bfloat16))
    assert found("x.npy")["x"][0] == "void16"


def test_endings_that_say_nothing():
    write_safetensors("a", {"t": ("F32", EIGHT, (2,))})
    np.save("b.npy", np.arange(2.0))
    np.savez("c.npz", d=np.arange(2.0))
    os.rename("b.npy", "b"), os.rename("c.npz", "c.zip")
    assert list(found("a", "b", "c.zip")) == ["t", "b", "d"]


def test_files_are_closed():
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc: open files can't be counted")
    write_index("m", {"a.safetensors": {"a": ("F32", EIGHT, (2,))}, "b.safetensors": {"b": ("F32", EIGHT, (2,))}})
    before = open_files()
    with open_model(["m"]):
        assert open_files() == before + 3
    assert open_files() == before
    os.truncate("m/b.safetensors", 20)
    refusal("m")
    assert open_files() == before


def test_many_threads_read_deflated_members_at_once():
    array = np.random.default_rng(0).integers(0, 9, 300_000).astype("f4")
    np.savez_compressed("x.npz", w=array, v=array[::-1])
    block = 50_000
    with open_model(["x.npz"]) as opened, ThreadPoolExecutor(4) as threads:
        for _ in range(2):
            for tensor, expected in zip(opened.tensors, (array, array[::-1]), strict=True):
                read = memoryview(bytearray(tensor.nbytes))
                begins = list(range(0, tensor.nbytes, block))
                swapped = [begin for pair in zip(begins[1::2], begins[::2], strict=True) for begin in pair]
                list(threads.map(lambda b: tensor.source.read_into(tensor.begin + b, read[b : b + block]), swapped))  # noqa: B023
                assert bytes(read) == expected.tobytes()


def test_deflated_members_that_are_not_being_read_take_no_memory():
    """But for their headers, once they were passed over."""
    np.savez_compressed("x.npz", **{f"t{i}": np.arange(1000.0) for i in range(3)})
    with open_model(["x.npz"]) as opened:
        for tensor in opened.tensors:
            for kept in ([], [tensor.begin]):
                member = tensor.source
                assert (member._inflater, member._rest, list(map(len, member._kept.values()))) == (None, b"", kept)
                content(tensor)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), max_size=8), st.integers(1, 400))
@example([(0, 0), (500, 400), (0, 100), (300, 300), (0, 900)], 100)
def test_deflated_members_in_any_order(reads, kept):
    """Whatever is kept of what was passed over."""
    raw = np.random.default_rng(1).bytes(1000)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", raw)
        info = archive.infolist()[0]
    Path("x.zip").write_bytes(stream.getvalue())
    source = sources.FileSource(Path("x.zip"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_PIECE", 64)
        patch.setattr(sources, "_KEPT", kept)
        member = sources.Inflated(source, 35, info.compress_size, 1000, info.CRC, "x")
        for begin, count in reads:
            buffer = bytearray(min(count, 1000 - begin))
            member.read_into(begin, memoryview(buffer))
            assert buffer == raw[begin : begin + len(buffer)]
            assert sum(map(len, member._kept.values())) <= kept
    source.close()


# --- what is wrong is refused, to the letter ----------------------------------------------------------------------


def entry(**changes):
    return framed({"t": {**F32, **changes}}, EIGHT)


def text(raw, data=EIGHT):
    return framed(raw, data)


T = b'"dtype":"F32","shape":[2],"data_offsets":[0,8]'
JSON = "x.safetensors: its header is not JSON at byte "
MANY = " (or a value of more than 4,096 bytes): "
TENSOR = "x.safetensors: tensor 't': "
FIELDS = TENSOR + "its entry must have dtype, shape and data_offsets, once each, and nothing else"
SHAPE, OFFSETS = (
    TENSOR + f"{name} must be a list of whole numbers, none negative" for name in ("shape", "data_offsets")
)
BEGINS = "x.safetensors: tensor 't' begins at byte "
PAIR = TENSOR + "data_offsets must be two numbers: its first byte, and the one behind its last"
NO_HEADER = "x.safetensors has no safetensors header, which begins with { at byte 8"
PICKLED = " is a pickle, and reading one can run any code: convert it with torch 2.10 or newer, safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
HOSTILE = {
    "nothing": (b"", "x.safetensors has only 0 bytes: a download cut short?"),
    "a length alone": (struct.pack("<Q", 2), "x.safetensors has only 8 bytes: a download cut short?"),
    "no header": (framed(b"", b"{}" + EIGHT), NO_HEADER),
    "leading space": (text(b" {}", b""), NO_HEADER),
    "byte order mark": (text(b"\xef\xbb\xbf{}", b""), NO_HEADER),
    "a list": (text(b"[]  ", b""), NO_HEADER),
    "header cut": (
        framed(b"{}", length=12),
        "x.safetensors ends 10 bytes before its header does: a download cut short?",
    ),
    "header of 2^63": (
        framed(b"{}", length=2**63),
        "x.safetensors says that its header has 9,223,372,036,854,775,808 bytes; at most 33,554,432 are read: spread its tensors over several files",
    ),
    "header of 2^64": (
        framed(b"{}", length=2**64 - 1),
        "x.safetensors says that its header has 18,446,744,073,709,551,615 bytes; at most 33,554,432 are read: spread its tensors over several files",
    ),
    "data cut": (entry()[:-3], "x.safetensors ends 3 bytes before its last tensor does: a download cut short?"),
    "more data": (entry() + b"12", "x.safetensors goes on for 2 bytes after its last tensor"),
    "data without tensors": (text(b"{}"), "x.safetensors goes on for 8 bytes after its last tensor"),
    "bad UTF-8": (text(b'{"\xff":{%s}}' % T), JSON + '1: "�":{"dtype":"F32","shap'),
    "bad UTF-8 in a value": (text(b'{"t":{"\xff":{%s}}' % T), JSON + "5" + MANY + '{"�":{"dtype":"F32","sha'),
    "half a surrogate pair": (text(rb'{"\ud800":{%s}}' % T), JSON + '1: "\\ud800":{"dtype":"F32",'),
    "overlong UTF-8": (text(b'{"\xc0\x80":{%s}}' % T), JSON + '1: "��":{"dtype":"F32","sha'),
    "control character in a string": (text(b'{"a\n":{%s}}' % T), JSON + '1: "a\\n":{"dtype":"F32","sha'),
    "unended": (text(b'{"t":{%s}' % T), JSON + "53: it ends"),
    "unended string": (text(b'{"t'), JSON + '1: "t'),
    "more after it": (text(b'{"t":{%s}}{}' % T), JSON + "54: {}"),
    "NUL after it": (text(b'{"t":{%s}}\0' % T), JSON + "54: \\x00"),
    "trailing comma": (text(b'{"t":{%s},}' % T), JSON + "54: }"),
    "single quotes": (text(b"{'t':{}}"), JSON + "1: 't':{}}"),
    "a comment": (text(b"{/**/}"), JSON + "1: /**/}"),
    "deep nesting": (text(b'{"t":' + b"[" * 4000 + b"]" * 4000 + b"}"), JSON + "5" + MANY + "[" * 24),
    "deeper nesting": (text(b'{"t":' + b'{"t":' * 100_000), JSON + "5" + MANY + '{"t":{"t":{"t":{"t":{"t"'),
    "NaN": (text(b'{"t":NaN}'), JSON + "5" + MANY + "NaN}"),
    "Infinity": (
        text(b'{"t":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}'),
        JSON + "5" + MANY + '{"dtype":"F32","shape":[',
    ),
    "number without end": (
        text(b'{"t":{"shape":[' + b"9" * 5000 + b"]}}"),
        JSON + "5" + MANY + '{"shape":[99999999999999',
    ),
    "a tensor twice": (text(b'{"t":{%s},"t":{%s}}' % (T, T)), "x.safetensors: its header has 't' twice"),
    "a tensor twice, escaped": (text(rb'{"t":{%s},"\u0074":{%s}}' % (T, T)), "x.safetensors: its header has 't' twice"),
    "metadata twice": (
        text(b'{"__metadata__":{},"__metadata__":{}}', b""),
        "x.safetensors: its header has '__metadata__' twice",
    ),
    "a word of metadata twice": (
        text(b'{"__metadata__":{"a":"1","a":"2"}}', b""),
        "x.safetensors: its header has 'a' twice",
    ),
    "metadata of a number": (text(b'{"__metadata__":{"a":1}}', b""), JSON + "21: 1}}"),
    "metadata of null": (text(b'{"__metadata__":null}', b""), JSON + "16: null}"),
    "metadata nested": (text(b'{"__metadata__":{"a":{}}}', b""), JSON + "21: {}}}"),
    "a field twice": (text(b'{"t":{%s,"shape":[2]}}' % T), FIELDS),
    "a field more": (entry(more=1), FIELDS),
    "a field too few": (text(b'{"t":{"dtype":"F32","shape":[2]}}'), FIELDS),
    "a tensor of null": (text(b'{"t":null}'), FIELDS),
    "a tensor of a list": (text(b'{"t":["dtype","shape","data_offsets"]}'), FIELDS),
    "unknown dtype": (entry(dtype="F33"), TENSOR + "no dtype of safetensors 0.8 is called F33"),
    "dtype of a list": (entry(dtype=["F32"]), TENSOR + "no dtype of safetensors 0.8 is called ['F32']"),
    "dtype of terminal escapes": (entry(dtype="\x1b[31m"), TENSOR + "no dtype of safetensors 0.8 is called \\x1b[31m"),
    "shape of a number": (entry(shape=2), SHAPE),
    "negative shape": (entry(shape=[-2]), SHAPE),
    "shape of a fraction": (entry(shape=[2.0]), SHAPE),
    "shape of truth": (entry(shape=[True, 2]), SHAPE),
    "shape of text": (entry(shape=["2"]), SHAPE),
    "shape of shapes": (entry(shape=[[2]]), SHAPE),
    "shape of pairs": (entry(shape={"2": 2}), SHAPE),
    "shape that overflows": (entry(shape=[2**32, 2**32]), TENSOR + "no file holds F32 [4294967296, 4294967296] at 0"),
    "shape that overflows to 2": (entry(shape=[2**64 + 2]), TENSOR + "no file holds F32 [18446744073709551618] at 0"),
    "shape that overflows but for a 0": (
        entry(shape=[2**62, 0], data_offsets=[0, 0]),
        TENSOR + "no file holds F32 [4611686018427387904, 0] at 0",
    ),
    "shape of 65": (entry(shape=[1] * 64 + [2]), TENSOR + "it has 65 dimensions; up to 64 are read"),
    "minus nothing": (
        text(b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}'),
        TENSOR + "-0 is no number of bytes or entries",
    ),
    "sub-byte": (entry(dtype="F4", shape=[15]), TENSOR + "15 entries of 4 bits don't fill whole bytes"),
    "offsets of one": (entry(data_offsets=[8]), PAIR),
    "offsets of three": (entry(data_offsets=[0, 8, 8]), PAIR),
    "offsets the wrong way round": (entry(data_offsets=[8, 0]), PAIR),
    "negative offsets": (entry(data_offsets=[-8, 0]), OFFSETS),
    "offsets of fractions": (entry(data_offsets=[0, 8.0]), OFFSETS),
    "offsets that overflow": (
        entry(data_offsets=[2**64 - 8, 2**64]),
        TENSOR + "no file holds F32 [2] at 18,446,744,073,709,551,608",
    ),
    "offsets that don't fit": (entry(data_offsets=[0, 4]), TENSOR + "F32 [2] takes 8 bytes; data_offsets span 4"),
    "hole": (
        framed({"a": F32, "t": {**F32, "data_offsets": [10, 18]}}, bytes(18)),
        BEGINS + "10 of the data, but the 2 before it are no tensor's",
    ),
    "hole at the beginning": (
        entry(data_offsets=[4, 12]) + bytes(4),
        BEGINS + "4 of the data, but the 4 before it are no tensor's",
    ),
    "overlap": (
        framed({"a": F32, "t": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
        BEGINS + "4 of the data, but byte 8 is the next free one",
    ),
    "one in another": (framed({"a": F32, "t": F32}, EIGHT), BEGINS + "0 of the data, but byte 8 is the next free one"),
    "name with NUL": (
        framed({"t\0": F32}, EIGHT),
        "x.safetensors: the name of tensor 't\\x00' has control characters, or more than 4,096 in all",
    ),
    "name with terminal escapes": (
        framed({"\x1b]0;x\x07": F32}, EIGHT),
        "x.safetensors: the name of tensor '\\x1b]0;x\\x07' has control characters, or more than 4,096 in all",
    ),
    "name of 1 MB": (
        framed({"n" * 2**20: F32}, EIGHT),
        f"x.safetensors: the name of tensor '{'n' * 80}' has control characters, or more than 4,096 in all",
    ),
    "a pickle": (b"\x80\x04\x95\0\0\0\0\0\0\0\0N.", "x.safetensors" + PICKLED),
    "a zip": (
        b"PK\3\4" + bytes(30),
        "x.safetensors is a zip archive, not a safetensors file; if numpy.savez wrote it: give it the ending .npz",
    ),
    "an array": (b"\x93NUMPY\1\0" + bytes(30), "x.safetensors is a .npy file: give it that ending"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
        "x.safetensors is a Git LFS pointer, not the file itself: fetch it with git lfs pull",
    ),
    "GGUF": (
        b"GGUF\3" + bytes(30),
        "x.safetensors is a GGUF file, which isn't read: name the safetensors file it was made of",
    ),
    "HDF5": (
        b"\x89HDF\r\n\x1a\n" + bytes(30),
        "x.safetensors is an HDF5 file, which isn't read: save its arrays with numpy.savez",
    ),
    "a web page": (
        b"<!doctype html><html>",
        "x.safetensors is a web page, not the file itself: was it downloaded from the right address?",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_safetensors(kind):
    raw, expected = HOSTILE[kind]
    Path("x.safetensors").write_bytes(raw)
    assert refusal("x.safetensors") == expected


def test_folders_pipes_and_devices_are_refused_without_waiting(here):
    os.mkdir("d.safetensors")
    os.mkfifo("p.safetensors")
    assert refusal("d.safetensors") == "d.safetensors holds no .safetensors file; name .npy and .npz files themselves"
    assert refusal("d.safetensors", "x") == "d.safetensors is a folder, not a file"
    assert refusal("p.safetensors") == "p.safetensors is a pipe, not a file"
    assert refusal("/dev/zero") == "/dev/zero is a device, not a file"
    assert refusal("none.npy") == "none.npy can't be opened: No such file or directory"
    assert refusal("a\0.npy") == "a\\x00.npy can't be opened: no file name holds a NUL"
    assert refusal() == "no model was named"


def test_a_pipe_that_takes_a_files_place_is_refused_without_waiting(monkeypatch):
    write_safetensors("x.safetensors", {})
    os.mkfifo("p")
    open_file = os.open
    monkeypatch.setattr(os, "open", lambda path, *flags, **more: open_file("p", *flags, **more))
    assert refusal("x.safetensors") == "x.safetensors is a pipe, not a file"


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.bin", "x.CKPT", "x.pkl", "m"])
def test_pickles_are_refused_by_their_names(name):
    os.mkdir("m")
    Path("m/x.bin").touch()
    Path(name).touch() if name != "m" else None
    assert refusal(name) == ("m/x.bin" if name == "m" else name) + PICKLED


def test_the_same_name_in_two_files():
    write_safetensors("a.safetensors", {"t": ("F32", EIGHT, (2,))})
    np.savez("b.npz", t=1.0)
    text = "tensor 't' is in a.safetensors and in {}: name files of one model, each once"
    assert refusal("a.safetensors", "b.npz") == text.format("b.npz")
    assert refusal("a.safetensors", "a.safetensors") == text.format("a.safetensors")


def test_more_tensors_than_are_read(monkeypatch):
    tensors = {f"t{i}": ("I8", b"", (0,)) for i in range(5)}
    write_safetensors("x.safetensors", tensors)
    write_index("m", {"s.safetensors": tensors})
    np.savez("x.npz", a=1, b=2)
    np.save("x.npy", 1)
    monkeypatch.setattr(model, "TENSORS", 5)
    assert len(found("x.safetensors")) == 5
    assert refusal("x.safetensors", "x.npz") == "x.npz has more tensors than are read of one model"
    assert refusal("x.safetensors", "x.npy") == "x.npy has more tensors than are read of one model"
    monkeypatch.setattr(model, "TENSORS", 4)
    assert refusal("x.safetensors") == "x.safetensors has more tensors than are read of one model"
    assert refusal("m") == "m/model.safetensors.index.json has more tensors than are read of one model"
    monkeypatch.setattr(strict_json, "MEMBERS", 4)
    assert refusal("x.safetensors") == "x.safetensors: its header has more than 4 names, which is as many as are read"


# --- indexes ------------------------------------------------------------------------------------------------------

INDEX = "m/model.safetensors.index.json"
TRUST = "if you trust it, name the files themselves"
SHARD = {"t": ("F32", EIGHT, (2,))}


def indexed(raw, files=("s.safetensors",)):
    """What is said of a folder with this index."""
    os.makedirs("m", exist_ok=True)
    for file in files:
        write_safetensors(f"m/{file}", SHARD)
    Path(INDEX).write_bytes(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    return refusal("m")


@pytest.mark.parametrize(
    "shard",
    [
        "../s.safetensors",
        "/s.safetensors",
        "",
        ".",
        "..",
        "a/s.safetensors",
        "a\\s.safetensors",
        "s\0.safetensors",
        "./s.safetensors",
    ],
)
def test_an_index_names_files_of_its_own_folder(shard):
    write_safetensors("s.safetensors", SHARD)
    shown = shard.replace("\0", "\\x00")
    expected = f"{INDEX} names the file '{shown}'; only files of its own folder are read: {TRUST}"
    assert indexed({"weight_map": {"t": shard}}) == expected
    assert indexed({"weight_map": {"a": "s.safetensors", "t": shard}}) == expected


HOSTILE_INDEXES = {
    "empty": (b"", f"{INDEX} is not JSON at byte 0: it ends"),
    "a list": (b"[]", f"{INDEX} is not JSON at byte 0: []"),
    "no map": (b"{}", f"{INDEX} has no weight_map, which says what file each tensor is in"),
    "an empty map": (b'{"weight_map":{}}', f"{INDEX} has no weight_map, which says what file each tensor is in"),
    "map twice": (b'{"weight_map":{"t":"s.safetensors"},"weight_map":{}}', f"{INDEX} has 'weight_map' twice"),
    "a tensor twice": (b'{"weight_map":{"t":"s.safetensors","t":"s.safetensors"}}', f"{INDEX} has 't' twice"),
    "map of numbers": (b'{"weight_map":{"t":1}}', f"{INDEX} is not JSON at byte 19: 1}}}}"),
    "map of lists": (b'{"weight_map":["t"]}', f'{INDEX} is not JSON at byte 14: ["t"]}}'),
    "more after it": (b'{"weight_map":{"t":"s.safetensors"}}x', f"{INDEX} is not JSON at byte 36: x"),
    "much else": (
        b'{"metadata":[' + b"1," * 50_000 + b"1]}",
        f"{INDEX} is not JSON at byte 12 (or a value of more than 65,536 bytes): [1,1,1,1,1,1,1,1,1,1,1,1",
    ),
    "another format": ({"weight_map": {"t": "s.bin"}}, f"{INDEX} names 's.bin', which is no .safetensors file"),
    "missing file": (
        {"weight_map": {"t": "no.safetensors"}},
        f"{INDEX} names the file 'no.safetensors': No such file or directory; a download cut short?",
    ),
    "missing tensor": (
        {"weight_map": {"t": "s.safetensors", "u": "s.safetensors"}},
        f"{INDEX} has tensor 'u' in 's.safetensors', where it isn't",
    ),
    "unlisted tensor": (
        {"weight_map": {"u": "s.safetensors"}},
        f"tensor 't' is in m/s.safetensors; {INDEX} has it in no file",
    ),
    "in another file": (
        {"weight_map": {"t": "r.safetensors", "u": "s.safetensors"}},
        f"tensor 't' is in m/s.safetensors; {INDEX} has it in 'r.safetensors'",
    ),
    "in two files": (
        {"weight_map": {"t": "s.safetensors", "u": "r.safetensors"}},
        f"tensor 't' is in m/r.safetensors; {INDEX} has it in no file",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_INDEXES)
def test_hostile_index(kind):
    raw, expected = HOSTILE_INDEXES[kind]
    if kind == "in another file":
        os.mkdir("m")
        write_safetensors("m/r.safetensors", {})
    assert (
        indexed(raw, ("s.safetensors", "r.safetensors") if kind == "in two files" else ("s.safetensors",)) == expected
    )


def test_a_large_index(monkeypatch):
    monkeypatch.setattr(model, "HEADER_LIMIT", 40)
    assert (
        indexed({"weight_map": {"t": "s.safetensors"}, "x": 1})
        == f"{INDEX} has 46 bytes; at most 40 are read of an index"
    )


def test_what_else_an_index_holds():
    indexed({"weight_map": {}})
    others = {"metadata": {"total_size": 8.0, "a": [None, {"b": True}]}, "ü": "ü\U0001f600"}
    Path(INDEX).write_text(json.dumps({**others, "weight_map": {"t": "s.safetensors"}, "more": []}, ensure_ascii=False))
    assert list(found("m")) == ["t"]


def test_nothing_is_opened_outside_of_a_folder(monkeypatch):
    """Where an index or a link leads out, and where it doesn't."""
    opened, open_file = [], os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda path, *more, **most: (opened.append(os.path.realpath(path)), open_file(path, *more, **most))[1],
    )
    write_safetensors("out.safetensors", SHARD)
    os.mkfifo("pipe.safetensors")
    os.mkdir("m")
    os.mkdir("m-2")
    write_safetensors("m-2/s.safetensors", SHARD)
    for target in (
        "../out.safetensors",
        "../pipe.safetensors",
        os.path.abspath("out.safetensors"),
        "../m-2/s.safetensors",
        "/dev/zero",
    ):
        os.path.lexists("m/s.safetensors") and os.unlink("m/s.safetensors")
        os.symlink(target, "m/s.safetensors")
        real = os.path.realpath("m/s.safetensors")
        expected = f"m/s.safetensors is a link out of its folder, to {real}: {TRUST}"
        assert indexed({"weight_map": {"t": "s.safetensors"}}, ()) == expected
        os.unlink(INDEX)
        assert refusal("m") == expected
        indexed({"weight_map": {"t": target}}, ())
    os.unlink(INDEX)
    os.symlink("../out.safetensors", INDEX)
    assert refusal("m") == f"{INDEX} is a link out of its folder, to {os.path.realpath('out.safetensors')}: {TRUST}"
    inside = os.path.realpath("m") + os.sep
    assert opened
    assert [path for path in opened if not path.startswith(inside)] == []
    # What is watched would show:
    found("out.safetensors")
    assert [path for path in opened if not path.startswith(inside)] == [os.path.realpath("out.safetensors")]


def test_what_is_no_file_in_a_folder():
    os.mkdir("m")
    os.mkfifo("m/s.safetensors")
    assert indexed({"weight_map": {"t": "s.safetensors"}}, ()) == "m/s.safetensors is a pipe, not a file"
    os.unlink("m/s.safetensors")
    os.mkdir("m/s.safetensors")
    assert indexed({"weight_map": {"t": "s.safetensors"}}, ()) == "m/s.safetensors is a folder, not a file"
    os.rmdir("m/s.safetensors")
    os.symlink("s.safetensors", "m/s.safetensors")
    assert (
        indexed({"weight_map": {"t": "s.safetensors"}}, ())
        == "m/s.safetensors can't be opened: Too many levels of symbolic links"
    )


def test_a_folder_of_several_files_without_an_index():
    os.mkdir("m")
    write_safetensors("m/a.safetensors", {})
    write_safetensors("m/b.safetensors", {})
    assert (
        refusal("m")
        == "m holds 2 .safetensors files and no model.safetensors.index.json that says how they belong together: name the files themselves"
    )


# --- NumPy's files ------------------------------------------------------------------------------------------------


def npy(header, data=EIGHT, version=(1, 0), length=None):
    raw = header if isinstance(header, bytes) else repr(header).encode()
    raw += b"\n"
    form = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(form, len(raw) if length is None else length) + raw + data


def described(descr="<f4", shape=(2,), fortran_order=False):
    return {"descr": descr, "fortran_order": fortran_order, "shape": shape}


UNREAD = "x.npy has a header that NumPy can't read: cut short, or damaged?"
HOSTILE_NPY = {
    "nothing": (b"", "x.npy is no .npy file, which begins with \\x93NUMPY"),
    "something else": (b"PK\3\4", "x.npy is no .npy file, which begins with \\x93NUMPY"),
    "version": (npy(described(), version=(9, 1)), "x.npy is of version 9.1 of .npy; 1.0 to 3.0 are read"),
    "magic alone": (b"\x93NUMPY", "x.npy is of version  of .npy; 1.0 to 3.0 are read"),
    "no length": (b"\x93NUMPY\1\0", UNREAD),
    "header cut": (npy(described(), b"", length=200), UNREAD),
    "header of 4 GB": (npy(described(), version=(2, 0), length=2**32 - 1), UNREAD),
    "large header": (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}" + b" " * 11_000), UNREAD),
    "code": (npy(b"__import__('os').mkdir('pwned')"), UNREAD),
    "deep nesting": (npy(b"[" * 9000), UNREAD),
    "a field more": (npy({**described(), "more": 1}), UNREAD),
    "a field too few": (npy({"descr": "<f4"}), UNREAD),
    "unknown dtype": (npy(described("<f3")), UNREAD),
    "bad UTF-8": (npy(b"{'\xff", version=(3, 0)), UNREAD),
    "NUL": (npy(b"{'descr': '<f4\0', 'fortran_order': False, 'shape': (2,)}"), UNREAD),
    "order of text": (npy(described(fortran_order="no")), UNREAD),
    "shape of text": (npy(described(shape=("2",))), UNREAD),
    "shape of a list": (npy(described(shape=[2])), UNREAD),
    "negative shape": (npy(described(shape=(-2, -1))), "x.npy has the shape (-2, -1); up to 64 lengths, none negative"),
    "shape of truth": (
        npy(described(shape=(True, 2))),
        "x.npy has the shape (True, 2); up to 64 lengths, none negative",
    ),
    "shape of 65": (
        npy(described(shape=(1,) * 65)),
        f"x.npy has the shape {str((1,) * 65)[:80]}; up to 64 lengths, none negative",
    ),
    "shape that overflows": (
        npy(described(shape=(2**32, 2**32))),
        "x.npy has the shape (4294967296, 4294967296): no file holds that many bytes",
    ),
    "shape that overflows but for a 0": (
        npy(described(shape=(2**62, 0))),
        "x.npy has the shape (4611686018427387904, 0): no file holds that many bytes",
    ),
    "4 TB": (npy(described(shape=(2**40,))), "x.npy ends 4,398,046,511,096 bytes before its array does: cut short?"),
    "cut": (npy(described())[:-1], "x.npy ends 1 bytes before its array does: cut short?"),
    "more": (npy(described()) + b"123", "x.npy goes on for 3 bytes after its array"),
    "objects": (
        npy(described("|O")),
        "x.npy holds Python objects, which NumPy keeps as a pickle, and reading one can run any code: save it as numbers, numpy.save(path, array.astype(float))",
    ),
    "objects in a field": (
        npy(described([("a", "|O")], (1,))),
        "x.npy holds Python objects, which NumPy keeps as a pickle, and reading one can run any code: save it as numbers, numpy.save(path, array.astype(float))",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_NPY)
def test_hostile_npy(kind):
    raw, expected = HOSTILE_NPY[kind]
    Path("x.npy").write_bytes(raw)
    assert refusal("x.npy") == expected
    assert not os.path.exists("pwned")


def npz(*members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile("x.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, raw in members:
            archive.writestr(name, raw, compression)
    return bytearray(Path("x.npz").read_bytes())


def patched(at, new, compression=zipfile.ZIP_STORED, raw=None):
    """What is said of an archive with other bytes in the first entry of its directory."""
    archive = npz(("a.npy", npy(described()) if raw is None else raw), compression=compression)
    begin = archive.index(b"PK\1\2") + at
    archive[begin : begin + len(new)] = new
    Path("x.npz").write_bytes(archive)
    return refusal("x.npz")


GOOD = npy(described())
MEMBER = "x.npz: member 'a.npy' "


def test_hostile_npz():
    archive = npz(("a.npy", GOOD))
    for cut in (0, 10, len(archive) // 2, len(archive) - 1):
        Path("x.npz").write_bytes(archive[:cut])
        assert refusal("x.npz") == "x.npz is no whole zip archive: a download cut short?"
    npz(("a.npy", GOOD), ("a.npy", GOOD))
    assert refusal("x.npz") == "x.npz has two members called 'a.npy'"
    npz(("a.npy", GOOD), ("\x1b[2J.txt", b""))
    assert (
        refusal("x.npz") == "x.npz: member '\\x1b[2J.txt' is no array: only archives that numpy.savez writes are read"
    )
    npz(("model/version", b"3"), ("model/data.pkl", b""))
    assert refusal("x.npz") == "x.npz" + PICKLED
    npz(("a.npy", npy(described("|O"))))
    assert refusal("x.npz").startswith(MEMBER + "holds Python objects, which NumPy keeps as a pickle")
    npz(("a.npy", GOOD[:-1]))
    assert refusal("x.npz") == MEMBER + "ends 1 bytes before its array does: cut short?"
    npz(("a\n.npy", GOOD))
    assert refusal("x.npz") == "x.npz: the name of tensor 'a\\n' has control characters, or more than 4,096 in all"
    npz(("../a.npy", GOOD), ("/b.npy", GOOD), (".npy", GOOD))
    assert list(found("x.npz")) == ["../a", "/b", ""]  # names, never paths


def test_hostile_directory_of_npz(monkeypatch):
    assert patched(8, b"\1\0") == MEMBER + "is encrypted: save it without a password"
    assert (
        patched(10, b"\x0c\0")
        == MEMBER + "is compressed in a way that numpy.savez_compressed doesn't use: save it anew"
    )
    size = struct.pack("<I", 2**31)
    assert patched(24, size) == MEMBER + f"can't have 2,147,483,648 bytes in {len(GOOD)}: damaged, or made to harm?"
    assert patched(24, size, zipfile.ZIP_DEFLATED).startswith(MEMBER + "can't have 2,147,483,648 bytes in ")
    assert patched(42, b"\1") == MEMBER + "isn't where the archive says: was it damaged?"
    assert patched(46, b"b") == "x.npz: member 'b.npy' isn't where the archive says: was it damaged?"
    npz(("a.npy", GOOD))
    monkeypatch.setattr(numpy_files, "_DIRECTORY", 40)
    assert (
        refusal("x.npz")
        == "x.npz says that its directory has 51 bytes; at most 40 are read: spread its arrays over several files"
    )


def test_members_that_overlap():
    """As in archives that inflate to a million times their size: one member's bytes hold another member."""
    inner = npz(("b.npy", GOOD))
    inner = bytes(inner[: inner.index(b"PK\1\2")])
    archive = npz(("a.npy", npy(described("<u1", (len(inner),)), inner)), ("b.npy", GOOD))
    assert list(found("x.npz")) == ["a", "b"]
    second = archive.rindex(b"PK\1\2")
    archive[second + 42 : second + 46] = struct.pack("<I", archive.index(inner))
    Path("x.npz").write_bytes(archive)
    assert refusal("x.npz") == "x.npz has members that overlap: damaged, or made to harm?"


def read_error(path):
    with pytest.raises(CheckpointError) as caught:
        found(path)
    return str(caught.value)


def test_members_that_inflate_to_something_else():
    """Which shows when they are read, at the first byte too many."""
    raw = npy(described(shape=(5000,)), np.random.default_rng(0).integers(0, 9, 20_000, "u1").tobytes())
    archive = npz(("a.npy", raw), compression=zipfile.ZIP_DEFLATED)
    entry = archive.index(b"PK\1\2")
    packed = struct.unpack("<I", archive[entry + 20 : entry + 24])[0]

    def changed(at, new, archive=archive):
        other = bytearray(archive)
        other[at : at + len(new)] = new
        Path("x.npz").write_bytes(other)
        return read_error("x.npz")

    assert (
        changed(entry + 16, bytes(4))
        == MEMBER + "has other bytes than its checksum says: was the file damaged on its way?"
    )
    assert changed(35 + packed // 2, bytes(200)) == MEMBER + "can't be inflated: was the file damaged on its way?"
    assert changed(entry + 20, struct.pack("<I", packed - 99)).startswith(MEMBER + "inflates to ")
    bomb = npz(("a.npy", raw + bytes(10**6)), compression=zipfile.ZIP_DEFLATED)
    declared = struct.pack("<I", len(raw))
    expected = MEMBER + f"inflates to more than {len(raw):,} bytes, which the archive says it has"
    assert changed(bomb.index(b"PK\1\2") + 24, declared, bomb) == expected
    less = npz(("a.npy", raw[:-4]), compression=zipfile.ZIP_DEFLATED)
    expected = MEMBER + f"inflates to {len(raw) - 4:,} bytes, not to {len(raw):,} as the archive says"
    assert changed(less.index(b"PK\1\2") + 24, declared, less) == expected


# --- while it is read ---------------------------------------------------------------------------------------------


def test_a_file_that_shrinks_while_it_is_read():
    write_safetensors("x.safetensors", SHARD)
    size = os.path.getsize("x.safetensors")
    with open_model(["x.safetensors"]) as opened:
        os.truncate("x.safetensors", size - 3)
        with pytest.raises(CheckpointError) as caught:
            content(opened.tensors[0])
    expected = f"x.safetensors ends at byte {size - 3}, before byte {size}: it had {size} when it was opened; is it being written?"
    assert str(caught.value) == expected


def test_a_file_that_comes_in_small_pieces_or_not_at_all(monkeypatch):
    write_safetensors("x.safetensors", SHARD)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:3]], offset))
    assert found("x.safetensors") == {"t": ("F32", (2,), EIGHT)}

    def broken(fd, buffers, offset):
        raise OSError(5, "Input/output error")

    with open_model(["x.safetensors"]) as opened:
        monkeypatch.setattr(os, "preadv", broken)
        begin = opened.tensors[0].begin
        with pytest.raises(CheckpointError, match=f"^x.safetensors can't be read at byte {begin}: Input/output error$"):
            content(opened.tensors[0])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_end_where_the_archive_says(save):
    save("x.npz", a=np.arange(2.0))
    with open_model(["x.npz"]) as opened:
        (tensor,) = opened.tensors
        with pytest.raises(CheckpointError, match=r"^x\.npz: member 'a\.npy' ends at byte 144, before byte 145$"):
            tensor.source.read_into(tensor.begin, memoryview(bytearray(17)))


PEAK = """
import sys
from normball.checkpoint.model import open_model, CheckpointError

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024

before = peak()
for path in sys.argv[1:]:
    try:
        open_model([path]).__exit__()
    except CheckpointError:
        pass
print(before, peak())
"""


def test_a_hostile_header_takes_little_memory():
    """Each of these makes `json.loads` take hundreds of megabytes, or gigabytes."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc: a peak can't be asked for")
    million = 2**20
    kinds = {
        "lists": b'{"a":[' + b"[]," * 10 * million + b"[]]}",
        "texts": b'{"__metadata__":{"a":"' + b"\\n" * 15 * million + b'"}}',
        "wide": ('{"a' + "\U0001f600" * 7 * million + '":{}}').encode(),
    }
    if THOROUGH:
        empty = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        kinds["tensors"] = ("{" + ",".join(empty % i for i in range(300_000)) + "}").encode()
        kinds["names"] = ('{"__metadata__":{' + ",".join(f'"{i}":""' for i in range(2_000_000)) + "}}").encode()
    for kind, raw in kinds.items():
        Path(f"{kind}.safetensors").write_bytes(framed(raw))
    with open("large.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 10**8) + b"{")
        file.truncate(10**8 + 8)
    paths = [f"{kind}.safetensors" for kind in (*kinds, "large")]
    run = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    before, peak = map(int, run.stdout.split())
    assert before < peak < before + 150


# --- every prefix, every flip -------------------------------------------------------------------------------------

SMALL = framed(
    {
        "__metadata__": {"a": "1"},
        "w": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "U8", "shape": [], "data_offsets": [8, 9]},
    },
    EIGHT + b"9",
)


def unjustified(raws):
    """Which of these the official reader refuses."""
    from safetensors import SafetensorError, deserialize

    def refused(raw):
        try:
            deserialize(bytes(raw))
        except SafetensorError:
            return True
        return False

    return [raw for raw in raws if refused(raw)]


def test_the_judge_can_fail():
    pytest.importorskip("safetensors", reason="it is the judge")
    wrong = [SMALL[:-1], SMALL + b"0", HOSTILE["hole"][0]]
    assert unjustified([SMALL, *wrong]) == wrong


def test_every_prefix_is_refused():
    np.save("y.npy", np.arange(3.0))
    np.savez("y.npz", a=np.arange(3.0), b=np.arange(2))
    np.savez_compressed("z.npz", a=np.arange(30.0))
    Path("y.safetensors").write_bytes(SMALL)
    for name in ("y.npy", "y.npz", "z.npz", "y.safetensors"):
        raw, path = Path(name).read_bytes(), f"x{name[1:]}"
        assert accepted(name)
        for length in range(len(raw)):
            put(path, raw[:length])
            assert not accepted(path), length


def flips(path, count, also=b""):
    """Replace each of a file's first bytes: by its neighbours in every bit, and by these. Yields what the file holds."""
    raw = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:  # in place: writing a file anew takes ten times as long
        for at in range(count):
            values = range(256) if THOROUGH else {*(raw[at] ^ 1 << bit for bit in range(8)), *also} - {raw[at]}
            for value in values:
                os.pwrite(file.fileno(), bytes([value]), at)
                yield raw[:at] + bytes([value]) + raw[at + 1 :]
            os.pwrite(file.fileno(), raw[at : at + 1], at)


JSON_IS_MADE_OF = b'"{}[],:\\ 0-9.eE'


def test_every_flip_is_refused_or_right():
    """What is accepted, the official reader accepts too."""
    path = Path("x.safetensors")
    path.write_bytes(SMALL)
    kept = [raw for raw in flips(path, len(SMALL) - 9, JSON_IS_MADE_OF) if accepted(path)]
    assert len(kept) > 20  # other names, and the like
    pytest.importorskip("safetensors", reason="it is the judge")
    assert unjustified(kept) == []


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "m"])
def test_flips_of_other_files_are_refused_or_read(name):
    np.save("x.npy", np.arange(3.0))
    np.savez_compressed("x.npz", a=np.arange(3.0))
    write_index("m", {"s.safetensors": SHARD})
    path, also = (Path(INDEX), JSON_IS_MADE_OF) if name == "m" else (Path(name), b"")
    for _ in flips(path, 128 if name == "x.npy" else os.path.getsize(path), also):
        with contextlib.suppress(CheckpointError):
            found(name)


# --- fuzzing ------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 4, 8, 12, -1, 2**31, 2**63, 2**64, 2.0, True, None, "1"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*safetensors.DTYPES, "F33"]) | VALUES,
        "shape": st.lists(NUMBERS, max_size=4) | VALUES,
        "data_offsets": st.tuples(NUMBERS, NUMBERS) | VALUES,
    }
)
HEADERS = st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), ENTRIES | VALUES, max_size=4)


@st.composite
def sound(draw):
    """A file as it should be, and its header."""
    header, begin = {}, 0
    names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=6)
    for name in draw(st.lists(names, unique=True, max_size=5)):
        dtype = draw(st.sampled_from(list(safetensors.DTYPES)))
        shape = [*draw(st.lists(st.integers(0, 3), max_size=3)), 8]
        end = begin + int(np.prod(shape)) * safetensors.DTYPES[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    shuffled = {name: header[name] for name in draw(st.permutations(list(header)))}
    raw = json.dumps(shuffled, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    return header, framed(raw.encode(), bytes(begin))


@given(sound())
def test_sound_files_are_read(case):
    header, raw = case
    put("x.safetensors", raw)
    with open_model(["x.safetensors"]) as opened:
        (file,) = opened.files
    for tensor in file.tensors:
        begin = tensor.begin - file.head
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.nbytes]}
        assert header.pop(tensor.name) == entry
    assert header == {}


def check_against_judge(raw):
    put("x.safetensors", raw)
    if accepted("x.safetensors") and "safetensors" in INSTALLED:
        assert unjustified([raw]) == []


@given(HEADERS, st.integers(0, 40), st.sampled_from([None, 0, 2, 10, 2**40]))
def test_fuzzed_headers(header, count, length):
    check_against_judge(framed(json.dumps(header).encode(), bytes(count), length))


@given(sound(), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), min_size=1, max_size=3))
def test_damaged_headers(case, changes):
    raw = case[1]
    for at, new in changes:
        raw = raw[:at] + new + raw[at + len(new) :]
    check_against_judge(raw)


MAPS = st.dictionaries(st.sampled_from("tu"), st.sampled_from(["s.safetensors", "..", "t"]))


@given(st.dictionaries(st.sampled_from(["weight_map", "metadata", "x"]), VALUES | MAPS, max_size=3))
def test_fuzzed_indexes(index):
    if not os.path.isdir("m"):
        write_index("m", {"s.safetensors": SHARD})
    raw = json.dumps(index)
    put(INDEX, raw.encode())
    if index.get("weight_map") != {"t": "s.safetensors"}:
        assert not accepted("m")
    elif not any(word in raw for word in ("NaN", "Infinity")):
        assert accepted("m")


DESCRIPTIONS = ["<f4", ">f8", "|V2", "|O", "<U3", [("a", "<i4")], [("a", "<i4", 2**40)], "", "<f99", "|S0"]


@given(
    st.fixed_dictionaries(
        {
            "descr": st.sampled_from(DESCRIPTIONS) | VALUES,
            "fortran_order": st.booleans() | VALUES,
            "shape": st.lists(NUMBERS, max_size=4).map(tuple) | VALUES,
        }
    ),
    st.integers(0, 40),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_fuzzed_npy(header, count, version):
    """What is accepted, NumPy reads too, alone and in an archive."""
    raw = npy(repr(header).encode("utf-8", "surrogatepass"), bytes(count), version)
    put("x.npy", raw)
    npz(("a.npy", raw), compression=zipfile.ZIP_DEFLATED)
    assert accepted("x.npy") == accepted("x.npz")
    if accepted("x.npy"):
        with warnings.catch_warnings(), open_model(["x.npy"]) as opened:
            warnings.simplefilter("ignore")
            loaded = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
            assert (loaded.shape, loaded.nbytes) == (opened.tensors[0].shape, opened.tensors[0].nbytes)


@given(st.binary(max_size=200))
@example(b"PK\5\6" + bytes(18))
def test_fuzzed_bytes(raw):
    os.makedirs("m", exist_ok=True)
    for name in ("x.npy", "x.npz", "x.safetensors", "x", INDEX):
        put(name, raw)
        accepted("m" if name == INDEX else name)
