"""The arithmetic of the benchmark suite, and that its baseline is what it says it is."""

import json
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks import curves, gpu, kills, ours, parity, sampling, single_experts, summary
from benchmarks.baseline.method import AUTHORS, TUNED, Method, ladder
from benchmarks.baseline.sampler import authors_order, grouped_order
from benchmarks.clock import Cost, cpu_seconds, interleave
from benchmarks.parity import FLOAT32, Parity
from benchmarks.results import Findings, Row, Spread, Table, write_between
from benchmarks.stages import row_of
from manyeyes.errors import ManyeyesError, UserError

ROOT = Path(__file__).parents[2]


def row(ratio=2.5, low=2.4, high=2.6, target=2.0, details=""):
    return Row("sft", "the other", Spread(ratio, low, high), target, details)


@pytest.mark.parametrize("benchmark", [kills, single_experts])
def test_a_benchmark_writes_to_no_folder_of_somebodys(benchmark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / ".manyeyes"))
    monkeypatch.setattr(benchmark.subprocess, "Popen", lambda *_, **__: pytest.fail("it ran"))
    folder = tmp_path / ("runs/kills" if benchmark is kills else "runs/single-experts")
    folder.mkdir(parents=True)
    (folder / "table.json").write_text("mine")
    monkeypatch.setattr("sys.argv", ["benchmark", str(ROOT / "recipes/tiny/eagle-x5.yaml")])
    with pytest.raises(SystemExit) as caught:
        benchmark.main()
    place = folder.relative_to(tmp_path)
    assert (
        str(caught.value)
        == {
            kills: f"{place} exists already: remove it or give another folder with --out.",
            single_experts: f"Cannot write to {place}: it holds table.json and is no result of "
            "manyeyes; give another folder with --out.",
        }[benchmark]
    )
    assert [path.name for path in folder.iterdir()] == ["table.json"]


def test_a_ratio_is_the_median_over_pairs_with_its_extremes():
    spread = Spread.of_pairs([1.0, 2.0, 4.0], [3.0, 4.0, 4.0])
    assert spread == Spread(2.0, 1.0, 3.0)


def test_a_cost_below_what_a_clock_tells_is_a_small_one():
    spread = Spread.of_pairs([0.0, 0.0, 1.0], [0.0, 1e-6, 0.0])
    assert spread == Spread(1.0, 1e-6, 1.0)


def test_a_short_piece_of_work_takes_processor_time():
    before = cpu_seconds()
    sum(range(1000))
    assert cpu_seconds() > before


@pytest.mark.parametrize(("high", "noisy"), [(2.1, False), (2.5, True)])
def test_pairs_that_disagree_are_marked(high, noisy):
    assert Spread(2.0, 1.9, high).noisy is noisy


def test_the_json_of_a_row_has_the_agreed_fields():
    assert row().as_json() == {
        "name": "sft, against the other", "ratio": 2.5, "low": 2.4, "high": 2.6, "target": 2.0,
        "ahead": True,
    }  # fmt: skip


def test_a_row_behind_its_target_says_so(tmp_path):
    findings = Findings(rows=[row(ratio=1.9, low=1.85, high=1.95)])
    assert "| **behind** |" in findings.markdown("here")
    findings.write_json(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())[0]["ahead"] is False


def test_the_tables_are_written_as_markdown():
    table = Table("The ladder", ("method", "times"), (("a|b", "1.00"),))
    findings = Findings(rows=[row(high=3.0, details="7 in processor seconds")], tables=[table])
    assert findings.markdown("Two cores.") == (
        "Two cores.\n\n"
        "| what | against | ratio | lowest to highest | target |  | details |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| sft | the other | 2.50 | 2.40 to 3.00 | 2.00 | ahead | 7 in processor seconds; noisy |"
        "\n\n**The ladder**\n\n| method | times |\n| --- | --- |\n| a\\|b | 1.00 |\n"
    )


def test_the_document_keeps_all_but_what_is_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter\n")
    write_between(page, "x", "new\n")
    assert page.read_text() == "before\n<!-- x -->\nnew\n<!-- /x -->\nafter\n"


def test_a_document_without_marks_is_refused_and_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- x -->\nno end\n")
    with pytest.raises(UserError) as caught:
        write_between(page, "x", "new")
    assert str(caught.value) == (
        f"{page}: the marks <!-- x --> and <!-- /x -->, between which the tables are written, are "
        "not both there in this order; put them back."
    )
    assert page.read_text() == "<!-- x -->\nno end\n"


def test_contenders_take_turns_and_each_round_begins_with_another():
    said = []

    def contender(name):
        return lambda: said.append(name) or Cost(1.0, 1.0)

    costs = interleave({name: contender(name) for name in "abc"}, rounds=3)
    assert "".join(said) == "abcbcacab"
    assert {name: len(found) for name, found in costs.items()} == {"a": 3, "b": 3, "c": 3}


def test_wall_time_decides_and_processor_time_and_memory_stand_beside_it():
    mine, theirs = [Cost(1.0, 2.0, peak_bytes=10)], [Cost(3.0, 2.0, peak_bytes=40)]
    found = row_of("sft", "the other", mine, theirs, 2.0)
    assert found.spread.ratio == 3.0
    assert found.details == "1.00 in processor seconds, 4.00 in peak memory"


def test_every_rung_of_the_ladder_changes_one_thing():
    rungs = [method for _, method in ladder()]
    assert rungs[0] == AUTHORS
    for below, above in pairwise(rungs):
        changed = [f.name for f in fields(Method) if vars(below)[f.name] != vars(above)[f.name]]
        assert len(changed) == 1, changed


def test_the_tuned_baseline_changes_settings_and_not_the_arithmetic():
    kept = ("blank_pictures", "full_head")
    assert [getattr(TUNED, name) for name in kept] == [getattr(AUTHORS, name) for name in kept]
    assert (TUNED.recompute, TUNED.grouped, TUNED.fused_optimizer) == (False, True, True)


WORDS = [(number * 37 % 90 + 1) * (-1 if number % 5 == 0 else 1) for number in range(200)]


def test_the_authors_order_gives_every_sample_once():
    assert sorted(authors_order(WORDS, 4, 4, 0)) == list(range(200))


def test_the_authors_batches_have_one_modality_but_for_the_last_joined_ones():
    order = authors_order(WORDS, 4, 4, 0)
    # 40 texts are 2 global batches of 16 and 8 more, 160 with pictures are 10: the last of each
    # kind, whole or not, is taken off, and both are joined in index order.
    rest = order[-24:]
    batches = [order[i : i + 16] for i in range(0, 176, 16)]
    assert all(len({WORDS[i] > 0 for i in batch}) == 1 for batch in batches)
    assert len({WORDS[i] > 0 for i in rest}) == 2
    assert rest == sorted(rest)


def test_the_authors_group_nothing_beyond_one_global_batch_and_balance_sums():
    words = list(range(1, 65))
    order = authors_order(words, 4, 4, 0)
    batches = [order[i : i + 16] for i in range(0, 64, 16)]
    # Neighbours in length would span 16; a random sixteen of 64 spans most of them.
    assert min(max(words[i] for i in b) - min(words[i] for i in b) for b in batches) > 32
    for batch in batches:
        ranks = [[words[i] for i in batch[r : r + 4]] for r in range(0, 16, 4)]
        assert max(map(sum, ranks)) - min(map(sum, ranks)) < max(map(max, ranks))
        assert all(max(rank) - min(rank) > 10 for rank in ranks)


def test_a_good_order_pads_less_and_keeps_modalities_apart():
    lengths = [abs(count) + (64 if count > 0 else 0) for count in WORDS]
    pictures = [count > 0 for count in WORDS]
    good = grouped_order(lengths, pictures, 4, 4, 0)
    assert sorted(good) == list(range(200))
    shipped = authors_order(WORDS, 4, 4, 0)
    found = [sampling.efficiency(lengths, sampling.dealt(order, 4, 4)) for order in (shipped, good)]
    assert found[0] < 0.8 < found[1]


def test_efficiency_waits_for_the_slowest_rank():
    # Rank 0 computes 2 x 4 positions, rank 1 2 x 10: both take as long as 20, 17 are real.
    assert sampling.efficiency([4, 3, 10, 0], [[[0, 1], [2, 3]]]) == 17 / 40


def test_ranks_that_pack_compute_nothing_but_real_positions():
    assert sampling.efficiency([4, 3, 10, 0], [[[0, 1], [2, 3]]], padded=False) == 17 / 20


@pytest.mark.parametrize("shape", ["llava", "eagle", "eve"])
def test_packs_make_32_ranks_wait_little(shape):
    lengths = sampling.synthetic(shape, 1024, 0)
    given = (lengths.positions, lengths.pictures, 4, 32, 0)
    packed = ours.planned_steps(*given, budget=4 * sampling.LONGEST)
    plain = ours.planned_steps(*given)
    assert sampling.efficiency(lengths.positions, packed, padded=False) > 0.96
    assert sampling.efficiency(lengths.positions, plain) < 0.7
    for one, other in zip(packed, plain, strict=True):
        assert sorted(i for rank in one for i in rank) == sorted(i for rank in other for i in rank)


def test_an_order_is_dealt_batch_by_batch_to_the_ranks():
    assert sampling.dealt(range(9), 2, 2) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize("shape", ["llava", "eagle", "eve"])
def test_synthetic_lengths_are_of_their_shape(shape):
    lengths = sampling.synthetic(shape, 2000, 0)
    texts = sum(not shown for shown in lengths.pictures) / 2000
    assert texts == pytest.approx(0.19 if shape == "eagle" else 0.06, abs=0.03)
    shortest = min(n for n, has in zip(lengths.positions, lengths.pictures, strict=True) if has)
    assert shortest >= {"llava": 577, "eagle": 1025, "eve": 151}[shape]


@pytest.mark.parametrize(
    "wrong",
    [Parity(2e-4, 1.0, 0.0), Parity(0.0, 0.99, 0.0), Parity(0.0, 1.0, 0.1)],
    ids=["loss", "direction", "length"],
)
def test_unequal_computations_are_not_timed(wrong):
    parity.require("sft", Parity(1e-6, 0.9999999, 1e-4), FLOAT32)
    with pytest.raises(ManyeyesError) as caught:
        parity.require("sft", wrong, FLOAT32)
    assert str(caught.value) == (
        f"sft: the two sides do not compute the same training (loss apart by {wrong.loss:.1e}, "
        f"gradient cosine {wrong.cosine:.6f}, norm apart by {wrong.norm:.1e}), so no speed is "
        "counted; find out which of them is wrong."
    )


def test_without_a_card_the_gpu_suite_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == (
        "make bench-gpu needs a CUDA card and a torch that can use it, and there is none here; "
        "run it on a machine with one, or run make bench, which needs no card.\n"
    )


def test_curves_of_other_steps_are_refused():
    with pytest.raises(ManyeyesError) as caught:
        curves.require_same_steps("sft", {curves.PRODUCT: (2.0, 1.0), curves.SAME: (2.0, 1.1)})
    assert str(caught.value) == (
        "sft: in the same order the losses of a step are 0.0500 apart in the mean, more than 0.001, "
        "so the two sides do not learn the same; find out which of them is wrong."
    )


def test_a_loss_that_is_no_number_is_not_the_same():
    found = {curves.PRODUCT: (2.0, float("nan")), curves.SAME: (2.0, 1.0)}
    with pytest.raises(ManyeyesError, match="nan apart"):
        curves.require_same_steps("sft", found)


def test_curves_are_told_and_drawn(tmp_path):
    found = {
        "sft": {
            curves.PRODUCT: (4.0, 2.0, 1.0, 1.2),
            curves.SAME: (4.0, 2.0, 1.0, 1.2),
            curves.OWN: (4.5, 2.0, 1.0, 1.4),
            curves.AGAIN: (3.5, 2.0, 1.0, 1.2),
        }
    }
    rows = curves.report(found).splitlines()[-4:]
    # The last quarter is two steps at least; each one's deviation is 0.1 and 0.2 times sqrt(2).
    assert rows == [
        "| sft | manyeyes | 4.0000 | 1.1000 |  |  |",
        "| sft | LLaVA-style trainer, the same order | 4.0000 | 1.1000 |  |  |",
        "| sft | LLaVA-style trainer, its own order | 4.5000 | 1.2000 | 0.1000 | 0.4472 |",
        "| sft | manyeyes, another order | 3.5000 | 1.1000 | 0.0000 | 0.2828 |",
    ]
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        curves.draw(found, picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert "its own order" in pictures[0].read_text()


def test_the_readme_sums_up_the_results_that_are_committed():
    page = (ROOT / "README.md").read_text("utf-8")
    rows = json.loads((ROOT / "benchmarks/results.json").read_text("utf-8"))
    assert f"<!-- bench-summary -->\n{summary.summary(rows)}\n<!-- /bench-summary -->" in page


def test_the_summary_spans_the_shapes():
    rows = [
        {"name": f"pretrain, vocabulary {size}, against {against}", "ratio": ratio, "ahead": True}
        for size, against, ratio in (
            (4096, "LLaVA-style trainer", 2.0),
            (32768, "LLaVA-style trainer", 3.5),
            (4096, "the same, tuned", 1.5),
        )
    ]
    text = summary.summary(rows)
    assert "| pretrain | 2.00 to 3.50 | 1.50 to 1.50 |\n" in text
    assert text.endswith("3 of the 3 rows of `make bench` reach their targets.")
