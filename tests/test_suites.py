"""Suites: the totals that their papers state, and targets that name what to run."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

import algos
from algos.dtypes import TYPES
from algos.lower.search import chain, unsupported
from algos.spec import ConvSpec
from bench.csv_file import LAYER, MOST_SPECS, read_csv
from bench.suites import resolve, suites
from bench.work import TRAINED, WORKLOADS, networks, sweep, tables


@pytest.mark.parametrize(
    ("name", "giga", "count"),
    [
        ("vgg16", 15.35, 13),
        ("resnet50_v1_5", 4.09, 53),
        ("xnnpack_mobilenetv2", 0.30, None),
        ("alexnet_owt", 0.66, 5),
        ("mobilenet_v1_pw", 0.55, 15),
    ],
)
def test_totals_are_those_of_the_literature(name: str, giga: float, count: int | None) -> None:
    suite = suites()[name]
    assert round(suite.macs / 1e9, 2) == giga
    assert count is None or sum(layer.count for layer in suite.layers) == count


def test_every_suite_parses_and_names_its_source() -> None:
    assert len(suites()) > 50
    for suite in suites().values():
        assert suite.source and suite.layers
        for layer in suite.layers:
            assert ConvSpec.parse(str(layer.spec)) == layer.spec


@pytest.mark.parametrize("name", ["training", "transposed", "video", "audio", "types"])
def test_what_is_lowered_is_worth_it_for_several_of_our_algorithms(name: str) -> None:
    own = [a for a in algos.algorithms() if a.family not in ("peer", "auto") and a.device == "cpu"]
    for layer in suites()[name].layers:
        ways = [chain(a, layer.spec) for a in own if unsupported(a, layer.spec) is None]
        assert sum(way.unwise is None for way in ways) > 2, f"{layer.network} {layer.name}: {layer.spec}"


def test_types_are_all_that_there_are() -> None:
    specs = [layer.spec for layer in suites()["types"].layers]
    assert {str(t) for spec in specs for t in (spec.in_dtype, spec.w_dtype, spec.out_dtype)} == set(TYPES)
    assert len(specs) == len(set(specs)) and {spec.activation for spec in specs} == {"none", "relu", "silu"}


def test_training_is_every_layer_in_every_direction_at_both_batches() -> None:
    layers = suites()["training"].layers
    found = {name: {(layer.spec.batch, layer.spec.direction, layer.spec.with_(batch=1, direction="forward"))
                    for layer in layers if layer.network.startswith(name)} for name in TRAINED}  # fmt: skip
    for name, specs in found.items():
        known = {layer.spec.with_(batch=1) for layer in tables()[name].layers}
        assert len(specs) == 6 * len(known) and {spec for *_, spec in specs} == known
    forward = sum(tables()[name].macs for name in TRAINED)
    assert suites()["training"].macs == 3 * forward, "an image takes each layer once, forth and twice back"


def test_the_layers_of_a_suite_of_networks_belong_to_one_each() -> None:
    found = dict(networks(["training", "transposed", "video", "audio"]))
    assert {
        "vgg16",
        "vgg16 input gradient",
        "vgg16 weight gradient",
        "dcgan",
        "fcn8s",
        "c3d",
        "unet3d",
        "conv_tasnet",
    } <= set(found)
    assert [layer for layer, *_ in found["c3d"]] == [
        "conv1a",
        "conv2a",
        "conv3a",
        "conv3b",
        "conv4a",
        "conv4b",
        "conv5a",
    ]
    assert dict(networks())["vgg16"] == dict(networks(["vgg16"]))["vgg16"], (
        "its forward passes are those of the table"
    )


def test_sizes_of_transposed_layers_follow_each_other() -> None:
    """What one gives is what the next takes, where nothing lies between them but activations."""
    layers = suites()["transposed"].layers
    for name in ("dcgan", "dcgan_torch", "cyclegan", "vae", "world_models_vae"):
        mine = [layer.spec for layer in layers if layer.network == name]
        for one, following in pairwise(mine):
            assert (one.in_channels, one.size) == (following.out_channels, following.output_size), str(
                following
            )


def test_arrays_of_video_stay_below_a_gigabyte() -> None:
    for layer in suites()["video"].layers:
        assert (
            4 * max(math.prod(shape) for shape in (layer.spec.input_shape, layer.spec.output_shape)) < 1 << 30
        )


def test_flat_rows_are_one_dimensional() -> None:
    assert {layer.spec.ndim for layer in suites()["wavenet_1d"].layers} == {1}
    assert {layer.spec.ndim for layer in suites()["xnnpack_mobilenetv2"].layers} == {2}


def test_sweeps_keep_the_size_when_the_template_does() -> None:
    specs = sweep([(64,), (48, 32)], [(3,), (1, 7)])
    assert [str(s) for s in specs] == [
        "1x1x64x64,1x1x3x3,p1", "1x1x64x64,1x1x1x7,p0x3", "1x1x48x32,1x1x3x3,p1", "1x1x48x32,1x1x1x7,p0x3"
    ]
    assert sweep([(16,)], [(5,)], "2x8x9x9,4x8x3x3,s2,float64,rank2")[0].output_size == (6, 6)


def test_targets_are_suites_specs_and_files(tmp_path: Path) -> None:
    file = tmp_path / "two.csv"
    file.write_text("spec\n\"9x9,3x3\"\n\"8x8,3x3\"\n")
    specs, _ = resolve(["9x9,3x3", str(file)], batch=3)
    assert [str(s) for s in specs] == ["3x1x9x9,1x1x3x3", "3x1x8x8,1x1x3x3"]
    assert resolve(["quick"])[1].budget.rounds == 24
    file.write_text("spec\n\"9x9,3x3\"\n\"8x8,9x9\"\n")
    with pytest.raises(ValueError, match=r"two\.csv line 3"):
        resolve([str(file)])
    for text, says in (("", "no specs"), ("a\n1\n", "no column"), ("spec\n", "only a header")):
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            resolve([str(file)])


COMMAS = "\n".join(
    ("name,{},note", 'a,"1x1x48x48,1x1x3x3,p1",größe', ' b, "1x2x24x24,4x2x3x3,s3" ,', ",,", "")
)
OTHERS = '\n'.join(('name;{};note', 'a;1x1x48x48,1x1x3x3,p1;größe', '', 'b; "1x2x24x24,4x2x3x3,s3" ;', ''))
FOUND = ["1x1x48x48,1x1x3x3,p1", "1x2x24x24,4x2x3x3,s3"]


@pytest.mark.parametrize("name", ["spec", "Spec", " spec", '"SPEC "'])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
)
def test_a_table_is_read_whatever_wrote_it(name: str, encoding: str, tmp_path: Path) -> None:
    """Spreadsheets and editors: encodings, delimiters, line ends, spaces and
    quotes; the file may have any name.
    """
    tables = [
        COMMAS,
        *(OTHERS.replace(";", delimiter) for delimiter in ";\t|"),
        "sep=;\n" + OTHERS,
        "\n\n" + COMMAS,
    ]
    for index, table in enumerate(tables):
        for end in ("\n", "\r\n", "\r"):
            file = tmp_path / ("mine.CSV" if index else "mine.txt")
            file.write_bytes(table.format(name).replace("\n", end).encode(encoding))
            specs, _ = resolve([str(file)])
            assert [str(spec) for spec in specs] == FOUND, (table, end)


def test_a_spec_at_the_end_of_its_row_needs_no_quotes(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("spec\n" + "\n".join(FOUND))
    assert [str(spec) for spec in read_csv(file)] == FOUND
    file.write_text("name,spec\na," + "\nb,".join(FOUND))
    assert [str(spec) for spec in read_csv(file)] == FOUND
    file.write_text("spec,name\n9x9,3x3,a\n")
    with pytest.raises(ValueError, match=r"mine\.csv line 2: .*put the spec in quotes"):
        read_csv(file)


def test_layers_are_read_whatever_wrote_them(tmp_path: Path) -> None:
    table = (WORKLOADS / "alexnet_owt.csv").read_text()
    expected = [layer.spec for layer in suites()["alexnet_owt"].layers]
    file = tmp_path / "mine.csv"
    changed = "\n".join(line if "," not in line else line.replace(",", ", ") for line in table.splitlines())
    for text in (
        table,
        table.replace("Cin", "CIN").replace("KH", "kh"),
        changed,
        table.replace(",64,", ",64.0,"),
    ):
        file.write_text(text, encoding="utf-16")
        assert read_csv(file) == expected


def test_each_column_of_a_layer_says_something_of_its_own_axis(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(",".join(LAYER) + "\n1,3,40,30,8,5,3,2,1,2,0,1,3,1\n")
    assert list(map(str, read_csv(file))) == ["1x3x40x30,8x3x5x3,s2x1,p2x0,d1x3"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Name;Größe\na;1\n", "no column spec: it has 'name', 'größe'"),
        ("N,Cin,H\n1,2,3\n", "no column W, Cout, KH, .*: it has 'n', 'cin', 'h'"),
        ("spec,Spec\n1,2\n", "two columns named spec"),
        ("spec\n\n\nnonsense\n", "line 4: 'nonsense' is not a shape"),
        ("\n\nspec\n\nnonsense\n", "line 5: 'nonsense' is not a shape"),
        ("name,spec\na\n", "line 2: empty spec"),
        (",".join(LAYER) + "\n1,3,x" + ",1" * 11, "line 2: H is 'x': write a whole number"),
        (",".join(LAYER) + "\n1,3,8", "line 2: pad_h is '': write a whole number"),
        ("spec\n" + "9" * 200_000 + "\n", "cannot read .*field larger"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_was_found(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says) as caught:
        read_csv(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_long_table_costs_as_much_as_the_different_specs_in_it(tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    with file.open("w") as out:
        out.write("spec,name\n")
        for i in range(50_000):
            out.write(f'"1x1x{8 + i % 50}x8,1x1x3x3",row {i}\n')
    tracemalloc.start()
    assert len(read_csv(file)) == 50
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_a_table_of_more_specs_than_could_be_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_SPECS == 100_000
    monkeypatch.setattr("bench.csv_file.MOST_SPECS", 20)
    file = tmp_path / "long.csv"
    file.write_text("spec\n" + "".join(f"{8 + i % 20}x8,3x3\n" for i in range(100)))
    assert len(read_csv(file)) == 20
    file.write_text("spec\n" + "".join(f"{8 + i}x8,3x3\n" for i in range(100)))
    with pytest.raises(ValueError, match=r"long\.csv holds more than 20 different specs: split it"):
        read_csv(file)


def test_one_bad_spec_among_others_is_named() -> None:
    with pytest.raises(ValueError, match=r"^'9x9,3x3,p': ") as error:
        resolve(["9x9,3x3", "9x9,3x3,p", "quick"])
    with pytest.raises(ValueError) as alone:
        resolve(["9x9,3x3,p"])
    assert str(error.value) == f"'9x9,3x3,p': {alone.value}"
