"""Markers, options and ini keys: who wins, and what a mistake costs (one line, exit 4, nothing started)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest

USAGE = pytest.ExitCode.USAGE_ERROR

SHOW = """
    import pytest

    def shown(request):
        from pytest_gpucap.session.pytest_session import declaration
        return declaration(request.node)
"""


@pytest.fixture
def show(pytester: pytest.Pytester) -> pytest.Pytester:
    """A suite whose tests assert on what they declare."""
    pytester.makepyfile(shown=SHOW)
    pytester.syspathinsert()
    return pytester


def test_the_most_specific_source_wins(show: pytest.Pytester) -> None:
    show.makeini(
        """
        [pytest]
        gpucap_target_qps = 3
        gpucap_gpus = 2
        gpucap_headroom = 1.5
        gpucap_max_time = 5m
        gpucap_model = synthetic:tiny
        """
    )
    show.makepyfile(
        test_it="""
        import pytest
        from shown import shown

        pytestmark = pytest.mark.gpucap(headroom=2, name="module")

        @pytest.mark.gpucap(qps=7, name="function", max_time="1m")
        def test_marker(request, gpucap):
            found = shown(request)
            assert (found.requirement.qps, found.requirement.gpus, found.requirement.headroom) == (7, 2, 2)
            assert (found.requirement.name, found.max_time_s) == ("function", 60)

        def test_command_line(request, gpucap):
            found = shown(request)
            assert (found.requirement.qps, found.requirement.gpus, found.requirement.headroom) == (4, 2, 2)
            assert (found.requirement.name, found.max_time_s) == ("module", 300)
        """
    )
    show.runpytest("--target-qps=4", "--gpu-class=cpu").assert_outcomes(passed=2)


def test_a_marker_of_a_parameter_and_of_a_derived_class_is_closer_than_pytest_has_it(show: pytest.Pytester) -> None:
    show.makepyfile(
        test_it="""
        import pytest
        from shown import shown

        gpucap = pytest.mark.gpucap
        pytestmark = [gpucap(qps=1, headroom=2, gpus=3), pytest.mark.vllm("synthetic:tiny", max_model_len=1024)]
        plenty = pytest.param(7, marks=[gpucap(qps=7), pytest.mark.vllm(max_model_len=2048)])

        def is_found(request, qps, gpus=3):
            found = shown(request)
            assert (found.requirement.qps, found.requirement.headroom, found.requirement.gpus) == (qps, 2, gpus)
            assert found.arguments["max_model_len"] == (2048 if qps == 7 else 1024)

        @pytest.mark.parametrize("qps", [2, plenty])
        @gpucap(qps=2)
        @pytest.mark.vllm(max_model_len=1024)
        def test_parameter(request, gpucap, qps):
            is_found(request, qps)

        @gpucap(qps=2)
        @pytest.mark.parametrize("qps", [2, plenty])
        class TestParameterOfAClass:
            def test_it(self, request, gpucap, qps):
                is_found(request, qps)

            @gpucap(qps=3)
            def test_function(self, request, gpucap, qps):
                is_found(request, 7 if qps == 7 else 3)

        @gpucap(qps=4, gpus=5)
        class Base:
            def test_it(self, request, gpucap):
                is_found(request, self.qps, gpus=5)

        class TestBase(Base):
            qps = 4

        @gpucap(qps=6)
        class TestDerived(Base):
            qps = 6

        class TestDerivedTwice(TestDerived):
            pytestmark = gpucap(qps=8)
            qps = 8

        @gpucap(qps=10)
        @gpucap(qps=9)
        def test_the_decorator_next_to_the_function(request, gpucap):
            is_found(request, 9)
        """
    )
    show.runpytest("--gpu-class=cpu").assert_outcomes(passed=10)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pytest.ini", "[pytest]\ngpucap_target_qps = 2.5\ngpucap_max_time = 45\ngpucap_require = true\n"),
        (
            "pyproject.toml",
            '[tool.pytest.ini_options]\ngpucap_target_qps = "2.5"\ngpucap_max_time = "45"\ngpucap_require = true\n',
        ),
        ("pytest.toml", "[pytest]\ngpucap_target_qps = 2.5\ngpucap_max_time = 45\ngpucap_require = true\n"),
    ],
)
def test_ini_keys_work_from_ini_and_from_native_toml(show: pytest.Pytester, name: str, text: str) -> None:
    if name == "pytest.toml" and tuple(map(int, pytest.__version__.split(".")[:2])) < (9, 2):
        pytest.skip("numbers in native TOML need pytest 9.2")
    show.path.joinpath(name).write_text(text)
    show.makepyfile(
        test_it="""
        from fractions import Fraction
        from pytest_gpucap.plugin import OPTIONS

        def test_it(request):
            options = request.config.stash[OPTIONS]
            assert (options.target_qps, options.max_time_s, options.require) == (Fraction(5, 2), 45.0, True)
        """
    )
    show.runpytest().assert_outcomes(passed=1)


MISTAKES = [
    ("gpucap(qsp=1)", "gpucap has no keyword 'qsp'; did you mean qps?"),
    ("gpucap(10)", "gpucap(10) takes keywords only"),
    ("gpucap(qps=-1)", "qps must be above 0, not -1"),
    ("gpucap(qps='ten')", "qps must be a number, not 'ten'"),
    ("gpucap(qps=1, gpus=0)", "gpus must be a whole number of at least 1, not 0"),
    ("gpucap(qps=1, headroom=0.9)", "headroom must be at least 1 (1.3 keeps 30% in reserve), not 0.9"),
    ("gpucap(qps=1, ttft_p101='1s')", "ttft_p101 is no latency limit"),
    ("gpucap(qps=1, ttft_p95='soon')", "ttft_p95 must be a duration"),
    ("gpucap(qps=1, input_tokens=0)", "input_tokens must be a whole number of at least 1, not 0"),
    ("gpucap(qps=1, arrivals='gaussian')", "arrivals must be one of poisson, constant, gamma, trace"),
    ("gpucap(qps=1, arrivals='gamma')", 'arrivals="gamma" and burstiness=CV go together'),
    ("gpucap(qps=1, trace='no.csv')", "trace: there is no file"),
    ("gpucap(qps=1, endpoint='telnet')", "endpoint must be one of chat, completions"),
    ("gpucap(qps=1, ignore_eos='yes')", "ignore_eos must be True or False"),
    ("gpucap(qps=1, temperature=-1)", "temperature must not be negative"),
    ("gpucap(qps=1, input_tokens=8, shared_prefix_tokens=8)", "shared_prefix_tokens=8 leaves no token"),
    ("gpucap(qps=1, max_error_rate='150%')", "max_error_rate must lie between 0 and 1"),
    ("gpucap(qps=1, ttft='500ms')", "ttft='500ms' has no percentile: write ttft_p95='500ms', or add goodput"),
    ("gpucap(qps=1, goodput='95%')", "goodput needs what good requests keep"),
    ("gpucap(qps=1, goodput='95%', itl='50ms')", "itl does not go with goodput"),
    ("gpucap(qps=1, goodputs='95%')", "did you mean goodput?"),
    ("gpucap(qps=1, goodput='95%', tpot='50ms', output_tokens=1)", "tpot limits the time between tokens"),
    ("vllm('a', model='b')", "names model twice"),
    ("vllm(model='m', tensor_parallel_size=0)", "tensor_parallel_size must be a whole number"),
    (
        "gpucap(qps=1, gpus=3)\n        @pytest.mark.vllm(tensor_parallel_size=2, data_parallel_size=2)",
        "gpus=3 cannot hold one replica: with its server's arguments, a replica takes 4 GPUs",
    ),
    ("vllm(model='m', port=80)", "port"),
    ("gpu_class('a10q')", "did you mean"),
]


@pytest.mark.parametrize(("marker", "message"), MISTAKES, ids=[marker for marker, _ in MISTAKES])
def test_a_mistake_in_a_marker_is_one_line_with_file_and_line(
    pytester: pytest.Pytester, marker: str, message: str
) -> None:
    pytester.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.{marker}
        def test_it(gpucap):
            gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=cpu", "--gpucap-model=synthetic:tiny")
    assert result.ret == USAGE
    result.stderr.fnmatch_lines([f"ERROR: test_it.py:3: *{message.translate({91: '[[]'})}*"])
    assert len(result.stderr.str().strip().splitlines()) == 1
    assert not pytester.path.joinpath(".gpucap").exists()


def test_all_mistakes_of_a_run_are_told_at_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=-1)
        def test_one(gpucap): ...

        @pytest.mark.gpucap(qqs=1)
        def test_two(gpucap): ...
        """
    )
    result = pytester.runpytest("--gpu-class=cpu", "--gpucap-model=synthetic:tiny")
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["*.py:3: qps must be above 0*", "*.py:6: gpucap has no keyword*"])


def test_a_mistake_in_a_test_that_is_not_selected_costs_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=-1)
        def test_broken(gpucap): ...

        def test_fine(): ...
        """
    )
    pytester.runpytest("-k", "fine").assert_outcomes(passed=1, deselected=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-qps=-1"], "--target-qps: target qps must be above 0, not -1"),
        (["--target-qps=many"], "--target-qps: target qps must be a number, not 'many'"),
        (["--gpus=0"], "--gpus: gpus must be a whole number of at least 1, not '0'"),
        (["--gpucap-headroom=0.5"], "--gpucap-headroom: headroom must be at least 1"),
        (["--gpucap-max-time=soon"], "--gpucap-max-time: max time must be a duration"),
        (["--gpu-class=a10q"], "--gpu-class: GPU class 'a10q' is not known: did you mean"),
        (["--gpu-class=sim:fst"], "--gpu-class: no simulator profile 'fst': there are *fast*"),
        (["--gpucap-url=ftp://x"], "--gpucap-url: 'ftp://x' is not a server's URL: write http://HOST:PORT/v1"),
        (["--gpucap-url=http://u:p@localhost/v1"], "--gpucap-url: the URL carries a user or password: name"),
        (["--gpucap-url=http://localhost/v1?key=k"], "--gpucap-url: the URL has a query or fragment"),
        (["--gpucap-url=http://x", "--gpucap-ca-file=none.pem"], "--gpucap-ca-file: *none.pem cannot be read: No such"),
        (
            ["--gpucap-url=http://x", "--gpucap-header=X-Key=UNSET_KEY"],
            "--gpucap-header: X-Key: * UNSET_KEY is not set",
        ),
        (["--gpucap-header=X-Key: s3cret"], "--gpucap-header: must be NAME=ENV: "),
        (["--gpucap-header=Host=NAME"], "--gpucap-header: Host belongs to the transport and cannot be set"),
        (["--gpucap-url=http://localhost/v1", "--gpu-class=sim:fast"], "--gpucap-url and --gpu-class=sim:PROFILE"),
        (["--gpucap-url=http://localhost/v1", "--gpu-class=a10q"], "--gpu-class: GPU class 'a10q' is not known"),
        (["--gpucap-vllm-python=/nowhere/python"], "--gpucap-vllm-python: there is no interpreter at /nowhere/python"),
        (["--gpu-class=mi300x"], "--gpu-class: GPU class 'mi300x' is not known: an AMD GPU is not supported"),
        (["--gpucap-gpu-idle=2"], "--gpucap-gpu-idle: gpu idle must be an amount of memory with its unit"),
        (["--gpucap-gpu-file=none.toml"], "--gpucap-gpu-file: *none.toml"),
        (["-o", "gpucap_inconclusive=maybe"], "*gpucap_inconclusive: must be one of fail, skip, pass, not 'maybe'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    pytester: pytest.Pytester, arguments: Sequence[str], message: str
) -> None:
    pytester.makepyfile("def test_it(): ...")
    result = pytester.runpytest(*arguments)
    assert result.ret == USAGE
    result.stderr.fnmatch_lines([f"ERROR: {message}*"])
    assert len(result.stderr.str().strip().splitlines()) == 1


@pytest.mark.parametrize("source", ["class NVMLError(Exception): ...", "import no_such_module", "1 / 0"])
def test_another_module_in_the_place_of_nvmls_is_one_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    pytester.makepyfile(
        "import pytest\n@pytest.mark.vllm(model='synthetic:tiny')\n@pytest.mark.gpucap(qps=1)\n"
        "def test_it(gpucap): gpucap.check()"
    )
    folder = pytester.mkdir("old")
    (folder / "pynvml.py").write_text(source)
    monkeypatch.setitem(sys.modules, "pynvml", sys)  # so that it is restored afterwards
    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.syspath_prepend(str(folder))
    named = pytester.runpytest("--gpu-class=h200")
    assert named.ret == USAGE
    named.stderr.fnmatch_lines([f"ERROR: --gpu-class: GPU class h200: no GPU here (*({folder}/pynvml.py)*"])
    assert len(named.stderr.str().strip().splitlines()) == 1
    skipped = pytester.runpytest("-rs")
    skipped.assert_outcomes(skipped=1)
    skipped.stdout.fnmatch_lines(["*no GPU here (the module pynvml*"])


def test_a_class_that_the_machine_does_not_have_must_not_turn_green(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny")
        @pytest.mark.gpucap(qps=1)
        def test_it(gpucap):
            gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=b200")
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["ERROR: *b200*"])
    assert len(result.stderr.str().strip().splitlines()) == 1


def test_an_interpreter_in_the_ini_file_is_missed_by_the_tests_that_need_it(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngpucap_vllm_python = .venv-vllm/bin/python\n")
    pytester.makepyfile(
        test_pure="def test_it(): ...",
        test_gpu="""
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny")
        def test_it(vllm_server): ...
        """,
    )
    pytester.runpytest("test_pure.py").assert_outcomes(passed=1)
    result = pytester.runpytest()
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["ERROR: test_gpu.py:3: there is no interpreter at *.venv-vllm/bin/python to start *"])


def test_a_class_in_the_ini_file_does_not_stop_other_tests(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngpucap_gpu_class = b200\n")
    pytester.makepyfile("def test_it(): ...")
    pytester.runpytest().assert_outcomes(passed=1)


NEEDS_GPU = """
    import pytest

    @pytest.mark.vllm(model="synthetic:tiny")
    @pytest.mark.gpucap(qps=1)
    def test_it(gpucap):
        gpucap.check()
"""


def test_without_a_gpu_and_without_a_class_a_test_is_skipped_with_the_reason(
    pytester: pytest.Pytester, no_gpu: None
) -> None:
    pytester.makepyfile(NEEDS_GPU)
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*no *GPU*--gpu-class*"])


def test_required_tests_fail_instead_of_being_skipped(pytester: pytest.Pytester, no_gpu: None) -> None:
    pytester.makepyfile(NEEDS_GPU)
    result = pytester.runpytest("--gpucap-require")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*no *GPU*"])


def test_a_test_about_another_class_is_skipped(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpu_class("h200")
        @pytest.mark.vllm(model="synthetic:tiny")
        @pytest.mark.gpucap(qps=1)
        def test_it(gpucap):
            gpucap.check()
        """
    )
    result = pytester.runpytest("-rs", "--gpu-class=cpu")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*about h200*cpu*"])


def test_a_test_without_a_model_says_where_to_name_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(vllm_server): ...
        """
    )
    result = pytester.runpytest("--gpu-class=cpu")
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["ERROR: *.py:1: no model*vllm(model=*--gpucap-model*"])


def test_tests_that_share_a_server_run_next_to_each_other(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        one = pytest.mark.vllm(model="synthetic:tiny")
        two = pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)

        @one
        def test_a(vllm_server): ...
        def test_b(): ...
        @two
        def test_c(vllm_server): ...
        @one
        def test_d(vllm_server): ...
        @two
        def test_e(vllm_server): ...
        """
    )
    result = pytester.runpytest("--gpu-class=cpu", "--collect-only", "-q")
    order = [line[-1] for line in result.outlines if "::test_" in line]
    assert order == list("adbce")


@pytest.mark.parametrize(
    ("arguments", "outcome", "said"),
    [
        ([], "skipped", "this test is about a10g: name the GPU class behind --gpucap-url with --gpu-class"),
        (["--gpu-class=h200"], "skipped", "this test is about a10g, and --gpu-class is h200"),
        (["--gpu-class=a10g"], "passed", "class a10g, url http://localhost/v1"),
    ],
)
def test_the_class_behind_a_url_is_what_the_command_line_says(
    pytester: pytest.Pytester, arguments: Sequence[str], outcome: str, said: str
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpu_class("a10g")
        def test_it(gpucap):
            assert gpucap
        """
    )
    result = pytester.runpytest("--gpucap-url=http://localhost/v1", "-rs", *arguments)
    result.assert_outcomes(**{outcome: 1})
    assert said in " ".join(result.stdout.str().split())


def test_answers_in_a_given_form_end_by_themselves_unless_told_otherwise(show: pytest.Pytester) -> None:
    show.makepyfile(
        test_it="""
        import pytest
        from shown import shown

        FORM = {"response_format": {"type": "json_object"}}
        pytestmark = pytest.mark.gpucap(qps=7, gpus=2)

        @pytest.mark.gpucap(extra_body=FORM)
        def test_form(request, gpucap):
            assert not shown(request).workload.ignore_eos

        @pytest.mark.gpucap(extra_body=FORM, ignore_eos=True)
        def test_told(request, gpucap):
            assert shown(request).workload.ignore_eos

        @pytest.mark.gpucap(extra_body={"tools": []})
        def test_free(request, gpucap):
            assert shown(request).workload.ignore_eos
        """
    )
    show.runpytest("--gpu-class=cpu", "--gpucap-model=synthetic:tiny").assert_outcomes(passed=3)


def test_images_and_audio_are_declared_and_kept_in_the_result(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(output_tokens=16, images=["512x512", "64x48"], audio=["1m", 0.5])
        def test_it(gpucap):
            gpucap.sample(rate=5, duration="2s")
        """
    )
    pytester.runpytest("--gpu-class=sim:cpu_tiny").assert_outcomes(passed=1)
    content = json.loads((pytester.path / ".gpucap" / "result.json").read_text())
    assert content["results"][0]["workload"]["images"] == ["512x512", "64x48"]
    assert content["results"][0]["workload"]["audio_s"] == [60.0, 0.5]
