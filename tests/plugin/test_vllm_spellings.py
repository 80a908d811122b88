"""Every spelling of a server argument leads to the same refusal and the same placement, whatever is measured."""

from __future__ import annotations

import pytest

USAGE = pytest.ExitCode.USAGE_ERROR

TWO_WAY = (
    "tensor_parallel_size=2",
    "**{'tensor-parallel-size': 2}",
    "tensor_parallel_size='2'",
    "tp=2",
    "**{'-tp': 2}",
    "tensor_parallel=2",
    "pp=2",
    "dp=2",
    "pcp=2",
)
WHERE = (
    ("--gpu-class=cpu",),
    ("--gpu-class=sim:fast",),
    ("--gpucap-url=http://127.0.0.1:1/v1",),
)


@pytest.mark.parametrize("options", WHERE, ids=" ".join)
def test_a_budget_below_one_replica_is_refused_for_every_spelling_and_method(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    calls = {
        "check()": "qps=1, gpus=1",
        "measure()": "gpus=1",
        "sweep()": "gpus=1",
        "sample(rate=1)": "gpus=1",
    }
    tests = [
        f"@pytest.mark.vllm(model='synthetic:tiny', {spelling})\n"
        f"@pytest.mark.gpucap({budget})\n"
        f"def test_{number}_{call.partition('(')[0]}(gpucap): gpucap.{call}\n"
        for number, spelling in enumerate(TWO_WAY)
        for call, budget in calls.items()
    ]
    pytester.makepyfile(test_it="import pytest\n" + "\n".join(tests))
    result = pytester.runpytest(*options)
    assert result.ret == USAGE
    lines = result.stderr.str().strip().splitlines()
    assert len(lines) == len(tests)
    assert all("test_it.py:" in line and ": gpus=1 cannot hold one replica" in line for line in lines)
    assert not pytester.path.joinpath(".gpucap").exists()


def test_a_budget_of_the_session_is_held_against_what_is_measured_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny", tp=2)
        def test_server(vllm_server): ...

        @pytest.mark.vllm(model="synthetic:tiny", tp=2)
        def test_measured(gpucap): ...
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast", "--gpus=1", "--collect-only")
    assert result.ret == USAGE
    [line] = result.stderr.str().strip().splitlines()
    assert "test_it.py:6: gpus=1 cannot hold one replica" in line


def test_every_spelling_is_placed_on_as_many_gpus_and_shares_one_server(pytester: pytest.Pytester) -> None:
    spellings = [spelling for spelling in TWO_WAY if "tensor" in spelling or "tp" in spelling]
    tests = [
        f"@pytest.mark.vllm(model='synthetic:tiny', {spelling})\n"
        f"def test_{number}(request, gpucap):\n"
        "    placed, declared = request.node.stash[_PLAN].placed, declaration(request.node)\n"
        "    assert (placed.devices, declared.gpus_per_replica) == (2, 2)\n"
        "    assert placed.engine.spec.args.flags() == ['--tensor-parallel-size', '2']\n"
        "    KEYS.add(placed.key)\n"
        "    assert len(KEYS) == 1\n"
        for number, spelling in enumerate(spellings)
    ]
    head = "import pytest\nfrom pytest_gpucap.session.pytest_session import _PLAN, declaration\nKEYS = set()\n"
    pytester.makepyfile(test_it=head + "\n".join(tests))
    pytester.runpytest("--gpu-class=cpu").assert_outcomes(passed=len(spellings))


def test_the_closest_marker_wins_however_it_spells_an_argument(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        from pytest_gpucap.session.pytest_session import declaration

        pytestmark = pytest.mark.vllm("synthetic:tiny", tensor_parallel_size=4, enforce_eager=True)

        @pytest.mark.vllm(tp=2, no_enforce_eager=True)
        def test_it(request, gpucap):
            found = declaration(request.node)
            assert (found.model, found.gpus_per_replica) == ("synthetic:tiny", 2)
            assert found.vllm_args.values == {"tensor_parallel_size": 2, "enforce_eager": False}
        """
    )
    pytester.runpytest("--gpu-class=cpu").assert_outcomes(passed=1)


@pytest.mark.parametrize("options", WHERE, ids=" ".join)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tp=2, tensor_parallel_size=4", "tensor_parallel_size given twice: tp=2 and tensor_parallel_size=4"),
        ("dp='two'", "data_parallel_size must be a number, not 'two'"),
        ("max_num_seqs=0", "max_num_seqs must be a whole number of at least 1, not 0"),
        ("enforce_eager=True, no_enforce_eager=True", "enforce_eager given twice"),
    ],
)
def test_conflicts_and_what_is_no_number_cost_one_line(
    pytester: pytest.Pytester, options: tuple[str, ...], arguments: str, message: str
) -> None:
    pytester.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny", {arguments})
        def test_it(gpucap):
            gpucap.measure()
        """
    )
    result = pytester.runpytest(*options)
    assert result.ret == USAGE
    [line] = result.stderr.str().strip().splitlines()
    assert line.startswith("ERROR: test_it.py:3: ")
    assert message in line


@pytest.mark.parametrize("spelling", ["-tp 2", "--tensor_parallel_size=2", "-dp=2"])
def test_a_base_that_needs_more_gpus_than_the_head_is_refused(pytester: pytest.Pytester, spelling: str) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny")
        @pytest.mark.gpucap(qps=1)
        def test_it(gpucap):
            gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=cpu", f"--gpucap-base-args={spelling}")
    assert result.ret == USAGE
    [line] = result.stderr.str().strip().splitlines()
    assert "--gpucap-base-args: one replica of the base takes 2 GPUs" in line
