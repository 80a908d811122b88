"""``import``, and what the other commands make of imported points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import Result, ResultFile, ResultKind
from tests.history.made import result, session

RECORDED = Path(__file__).parents[1] / "other_tools" / "recorded"
GUIDELLM = RECORDED / "guidellm-0.8.1" / "open.json"
VLLM = RECORDED / "vllm-0.32.0" / "open.json"
IMPORTED = "IMPORTED: a point of another tool, without an interval; nobody checked its load generator"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def of_a_server(source: Path, name: str = "real.json", **replaced: str) -> Path:
    """A recorded result as if it were of a server that is not simulated, with some of its text replaced."""
    text = source.read_text().replace("simulated-fast", "org/chat")
    for old, new in replaced.items():
        text = text.replace(old, new)
    path = Path(name)
    path.write_text(text)
    return path


def imported(source: Path, out: str, *options: str) -> ResultFile:
    assert main(["import", str(source), "-o", out, *options]) == 0
    return result_file.read(Path(out))


def measured(path: str, *results: Result) -> str:
    result_file.write(Path(path), session(*results))
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["import", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.partition("import: ")[2].strip()


def test_a_point_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    content = imported(of_a_server(GUIDELLM), "out.json")
    assert [(each.kind, each.name) for each in content.results] == [
        (ResultKind.IMPORTED, "10 req/s of chat"),
        (ResultKind.IMPORTED, "20 req/s of chat"),
    ]
    point = content.results[1]
    assert point.imported is not None
    assert (point.imported.tool, point.imported.version, point.imported.file) == ("GuideLLM", "0.8.1", "real.json")
    assert (point.sustainable_rate, point.at_least_rps, point.outcome, point.simulated) == (None, None, None, False)
    shown = capsys.readouterr().out
    assert "imported 20 req/s of chat 20 (a point)" in " ".join(shown.split())
    assert IMPORTED in shown
    assert "server time" not in shown
    assert shown.endswith("2 points in out.json\n")


def test_a_point_of_our_simulator_says_simulated() -> None:
    content = imported(VLLM, "out.json")
    assert content.simulated
    assert content.results[0].simulated


def test_every_report_shows_a_point(capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(VLLM), "out.json", "--slo", "e2e_p95=52ms", "--slo", "ttft_p99=20ms", "--slo", "ttft_p90=1s")
    capsys.readouterr()
    assert main(["show", "out.json"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "imported a point of another tool, without an interval; nobody checked its load generator: vllm bench" in shown
    )
    assert "p95 E2E 52.7 ms of 52 ms: broken, p99 TTFT 7.94 ms of 20 ms: kept, p90 TTFT is not in the file" in shown
    assert "20 req/s; lengths as seen, not as asked for" in shown
    assert "TTFT p50 4.96 ms, p99 7.94 ms" in shown
    assert "seed" not in shown  # nobody knows it
    reports = ["--markdown", "a.md", "--html", "a.html", "--junit", "a.xml", "--metrics", "a.txt", "--text", "a.log"]
    assert main(["report", "out.json", *reports]) == 0
    assert "> **IMPORTED**: a point of another tool" in Path("a.md").read_text()
    page = Path("a.html").read_text()
    assert "A result marked imported is a point of another tool" in page
    assert '<small class="sim">imported</small>' in page
    junit = Path("a.xml").read_text()
    assert 'name="gpucap_imported" value="vllm bench serve: a point of another tool' in junit
    assert 'name="gpucap_point_rps" value="19.50736"' in junit
    assert "gpucap_rate_rps" not in junit
    assert "gpucap_sustainable_rate_rps{" not in Path("a.txt").read_text()
    assert "1 imported point" in Path("a.md").read_text().splitlines()[0]


def test_percentiles_that_a_file_lacks_give_way_to_those_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(VLLM), "out.json")
    capsys.readouterr()
    main(["show", "out.json"])
    headers = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("window"))
    assert headers.split()[-4:] == ["p99", "TTFT", "p95", "E2E"]


def test_two_points_are_compared_without_a_decision(capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(VLLM), "a.json")
    slower = {'"request_throughput": 19.5': '"request_throughput": 17.5', '"p99_ttft_ms": 7.9': '"p99_ttft_ms": 9.9'}
    imported(of_a_server(VLLM, **slower), "b.json")
    capsys.readouterr()
    assert main(["compare", "a.json", "b.json"]) == 0
    shown = capsys.readouterr().out
    assert "INCONCLUSIVE 20 req/s of chat 19.5 (?-?) 17.5 (?-?) -10.3% (? to ?)" in " ".join(shown.split())
    assert "points have no interval, so nobody can tell a change from chance" in shown
    assert "at 20 req/s base head change (95% interval) decision" in " ".join(shown.split())
    assert "p99 TTFT 7.94 ms 9.94 ms +25.2% (? to ?) INCONCLUSIVE" in " ".join(shown.split())
    assert IMPORTED in shown
    assert main(["compare", "a.json", "b.json", "--format", "markdown"]) == 0
    assert "> **IMPORTED**" in capsys.readouterr().out
    assert main(["compare", "a.json", "b.json", "--format", "json"]) == 0
    comparison = json.loads(capsys.readouterr().out)["results"][0]["comparison"]
    assert comparison["ratio"] == {
        "value": pytest.approx(0.8975, abs=1e-3),
        "low": None,
        "high": None,
        "confidence": 0.95,
    }


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        (["--gpu-class", "h200"], "GPU class: unknown -> h200"),
        (["--server-arg", "max_num_seqs=64"], "server argument max_num_seqs: none -> 64"),
        (["--model", "org/other", "--name", "chat"], "model: org/chat -> org/other"),
        (["--slo", "e2e_p95=1s"], "limit e2e_p95: none -> 1"),
    ],
)
def test_points_of_other_servers_are_not_compared(
    options: list[str], differs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    imported(of_a_server(VLLM), "a.json")
    imported(of_a_server(VLLM), "b.json", *options)
    capsys.readouterr()
    assert main(["compare", "a.json", "b.json"]) == 0
    assert f"differs: {differs}" in capsys.readouterr().out


def test_lengths_as_seen_may_differ_a_little(capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(VLLM), "a.json")
    for tokens, decision in ((641, "INCONCLUSIVE"), (6400, "NOT COMPARABLE")):
        changed = {'"total_output_tokens": 640': f'"total_output_tokens": {tokens}'}
        imported(of_a_server(VLLM, **changed), "b.json")
        capsys.readouterr()
        main(["compare", "a.json", "b.json"])
        assert decision in capsys.readouterr().out


def test_what_we_measured_and_a_point_are_never_compared(capsys: pytest.CaptureFixture[str]) -> None:
    ours = measured("ours.json", result(25.0))
    imported(of_a_server(VLLM), "theirs.json")
    capsys.readouterr()
    for base, head in ((ours, "theirs.json"), ("theirs.json", ours)):
        assert main(["compare", base, head]) == 0
        shown = capsys.readouterr().out
        assert "NOT COMPARABLE" in shown
        assert "what this plugin measured and a point of another tool are never compared" in shown


def test_a_name_that_a_test_of_ours_has_mixes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(VLLM), "theirs.json", "--name", "chat")
    content = result_file.read(Path("theirs.json"))
    name = content.results[0].name
    from tests.history.made import named

    ours = measured("ours.json", result(25.0, requirement=named(name)))
    capsys.readouterr()
    main(["compare", "theirs.json", ours])
    assert "measured or SIMULATED: measured by vllm bench serve, imported -> measured" in capsys.readouterr().out


def test_history_keeps_points_apart(capsys: pytest.CaptureFixture[str]) -> None:
    Path("nights").mkdir()
    for day in (1, 2, 3):
        of_night = {"20261130-": f"2026110{day}-"}
        imported(of_a_server(VLLM, **of_night), f"nights/{day}.json")
    measured("nights/ours.json", result(25.0))
    capsys.readouterr()
    assert main(["history", "nights", "--format", "json"]) == 0
    theirs, ours = sorted(
        json.loads(capsys.readouterr().out)["trends"], key=lambda trend: trend["imported"], reverse=True
    )
    assert theirs["imported"] == "points of vllm bench serve, without an interval"
    assert [point["when"][:10] for point in theirs["points"]] == ["2026-11-01", "2026-11-02", "2026-11-03"]
    assert [point["night"] for point in theirs["points"]] == [0, 1, 2]
    assert (ours["imported"], len(ours["points"])) == ("", 1)
    assert main(["history", "nights"]) == 0
    assert "IMPORTED vllm bench serve::20 req/s of chat (org/chat, " in capsys.readouterr().out


def test_points_of_several_nights_in_one_file_are_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    nights = [str(of_a_server(VLLM, f"{day}.json", **{"20261130-": f"2026110{day}-"})) for day in (3, 1, 2)]
    assert main(["import", *nights, "-o", "nights/all.json"]) == 0
    capsys.readouterr()
    assert main(["history", "nights", "--format", "json"]) == 0
    (trend,) = json.loads(capsys.readouterr().out)["trends"]
    assert [point["when"][:10] for point in trend["points"]] == ["2026-11-01", "2026-11-02", "2026-11-03"]


def test_plan_says_that_its_rate_is_a_point(capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(GUIDELLM), "out.json", "--gpu-class", "h200", "--slo", "ttft_p95=8ms")
    capsys.readouterr()
    assert main(["plan", "--result", "out.json", "--qps", "100", "--gpu-class", "h200"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    # 20 req/s broke the limit, so T is the point below: 100 x 1.3 / 10.2 = 12.8.
    assert "h200 10.2 another tool 13 1833 GB" in shown
    assert (
        "10 req/s of chat in out.json, GPU class as declared: a point, no measured capacity: it has no interval"
        in shown
    )
    assert "left out: 20 req/s of chat in out.json: ttft_p95 is 0.00821 s, limit 0.008 s" in shown
    assert main(["plan", "--result", "out.json", "--qps", "100", "--gpu-class", "h200", "--format", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["cheapest"], plan["fleets"][0]["provenance"]) == (None, "another tool")
    assert (plan["fleets"][0]["low_rps"], plan["fleets"][0]["high_rps"]) == (None, None)


def test_plan_takes_the_highest_point_that_keeps_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(GUIDELLM), "out.json", "--gpu-class", "h200", "--slo", "e2e_p95=1s")
    capsys.readouterr()
    assert main(["plan", "--result", "out.json", "--qps", "100", "--gpu-class", "h200"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "h200 20 another tool 7 987 GB" in shown
    assert "left out: 10 req/s of chat in out.json: a lower point of the same service" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the GPU class is not known; give it when importing: --gpu-class"),
        (["--gpu-class", "h200", "--slo", "ttft_p99_9=1s"], "ttft_p99_9 is not in the file"),
    ],
)
def test_points_that_plan_cannot_use(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(GUIDELLM), "out.json", *options)
    capsys.readouterr()
    words = ["plan", "--result", "out.json", "--qps", "1", "--gpu-class", "h200", "--model", "synthetic:tiny"]
    assert main(words) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_plan_takes_what_we_measured_before_a_point(capsys: pytest.CaptureFixture[str]) -> None:
    imported(of_a_server(GUIDELLM), "theirs.json", "--gpu-class", "h200")
    ours = measured("ours.json", result(25.0))
    capsys.readouterr()
    assert main(["plan", "--result", ours, "--result", "theirs.json", "--gpu-class", "h200", "--format", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fleets"][0]["provenance"] == "measured here"


def test_failed_requests_and_runs_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {'"failed": 0': '"failed": 4'}
    content = imported(of_a_server(VLLM, **failed), "out.json", "--gpu-class", "h200")
    assert content.results[0].samples[0].errors == {"failed": 4}
    assert "errors 9.1% of 1.0%: broken" in _shown("out.json", capsys)
    content = imported(of_a_server(VLLM, **{'"completed": 40': '"completed": 0'}), "none.json")
    assert [problem.text for problem in content.results[0].problems] == ["vllm bench serve: no request was answered"]
    assert "no request was answered" in _shown("none.json", capsys)


def _shown(path: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    main(["show", path])
    return " ".join(capsys.readouterr().out.split())


def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    source = str(VLLM)
    assert refused(capsys, "nowhere.json") == "nowhere.json: No such file or directory"
    assert refused(capsys, source, "--slo", "e2e_p95") == "--slo e2e_p95: write NAME=VALUE, such as e2e_p95=20s"
    assert refused(capsys, source, "--slo", "speed_p95=1s").startswith("speed_p95")
    assert refused(capsys, source, "--slo", "goodput=95%", "--slo", "e2e=1s").startswith("--slo goodput: a point has")
    assert refused(capsys, source, "--server-arg", "x").startswith("--server-arg x: write NAME=VALUE, such as tensor")
    assert "tensor_parallel_size" in refused(capsys, source, "--server-arg", "tensor_parallel_size=many")
    assert refused(capsys, source, "--gpu-class", "a10q").startswith("--gpu-class: ")
    assert not Path(".gpucap").exists()


def test_no_measurement_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    source = str(of_a_server(VLLM))
    ours = measured("ours.json", result(25.0))
    assert (
        refused(capsys, source, "-o", ours) == "-o ours.json: holds results that were measured; it is not overwritten"
    )
    assert refused(capsys, source, "-o", source).endswith("is one of the files that are read, and would be replaced")
    assert refused(capsys, source, "-o", ".").startswith("-o .: is a folder")
    Path("notes.txt").write_text("mine")
    assert refused(capsys, source, "-o", "notes.txt").endswith("it is not overwritten: name another file")
    assert Path("notes.txt").read_text() == "mine"
    imported(Path(source), "out.json")
    imported(Path(source), "out.json")  # imported results may be


def test_the_default_file_is_one_of_its_own() -> None:
    assert main(["import", str(VLLM), str(RECORDED / "sglang-0.5.23")]) == 0
    assert len(result_file.read(Path(".gpucap/imported.json")).results) == 3


def test_secrets_in_a_command_line_do_not_reach_the_file() -> None:
    source = RECORDED / "aiperf-0.13.0" / "open" / "profile_export_aiperf.json"
    document = json.loads(source.read_bytes())
    document["run_info"]["cli_command"] = "aiperf profile --api-key sk-abcdefghijklmnopqrstuvwx1234 --url http://h"
    Path("a.json").write_text(json.dumps(document))
    content = imported(Path("a.json"), "out.json")
    assert "aiperf profile" in str(content.results[0].environment.command)
    assert "sk-abcdef" not in Path("out.json").read_text()
