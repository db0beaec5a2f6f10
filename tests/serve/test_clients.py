# SPDX-License-Identifier: Apache-2.0
"""A server with two data-parallel ranks and real clients: vLLM's benchmark in bursts, OpenAI's client with what it can ask
for, clients that leave, and SIGTERM while requests are answered."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.support.environment import clean_environment
from tests.support.npus import npu_command
from tests.support.processes import result_of, run, under_virtual_npu
from tests.support.server import Server
from tests.support.text_models import continuation

pytestmark = [pytest.mark.slow, pytest.mark.serve, pytest.mark.timeout(1200)]

NAME = "ibm-research/PowerMoE-3b"
PROMPT = "Hello, my name is"
COIN = {str(ord("x")): 60, str(ord("y")): 60}
"""Makes each token an x or a y, by chance."""
LONGEST = 512
START_SECONDS = 500.0
GRACE_SECONDS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hub")
    return str(result_of(under_virtual_npu("-m", "tests.support.text_models", str(folder), seconds=300))[NAME])


@contextlib.contextmanager
def serve(model: str, folder: Path, *more: str) -> Iterator[Server]:
    arguments = [
        "--served-model-name",
        NAME,
        "--data-parallel-size",
        "2",
        "--enable-expert-parallel",
        "--enforce-eager",
    ]
    arguments += ["--max-model-len", str(LONGEST), "--max-num-seqs", "16", "--max-num-batched-tokens", "128", *more]
    environment = {"VLLM_ASCEND_PATCH": "1", "HF_HUB_OFFLINE": "1"}
    with Server(model, arguments, environment, folder / "server.log", devices=2) as server:
        server.wait_until_ready(START_SECONDS)
        yield server


@pytest.fixture(scope="module")
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(model, tmp_path_factory.mktemp("server")) as running:
        yield running
    assert not running.leftovers()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


def complete(client: openai.OpenAI, prompt: str = PROMPT, **asked: Any) -> Any:
    asked = {"max_tokens": 24, "temperature": 0, **asked}
    return client.completions.create(model=NAME, prompt=prompt, **asked)


def running_requests(server: Server) -> float:
    """Requests that run or wait on the two ranks; not a number while a rank has told of none."""
    text = requests.get(f"{server.url}/metrics", timeout=20).text
    found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found)) if len(found) >= 4 else math.nan


def test_vllms_benchmark_in_bursts_has_every_token_of_every_request(model: str, server: Server, tmp_path: Path) -> None:
    vllm = str(Path(sys.executable).with_name("vllm"))
    command = [vllm, "bench", "serve", "--backend", "openai", "--base-url", server.url, "--model", NAME]
    command += [
        "--tokenizer",
        model,
        "--dataset-name",
        "random",
        "--random-input-len",
        "40",
        "--random-output-len",
        "20",
    ]
    command += ["--num-prompts", "60", "--request-rate", "12", "--burstiness", "0.1", "--ignore-eos", "--disable-tqdm"]
    command += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"]
    environment = clean_environment(HF_HUB_OFFLINE="1")
    done = run(npu_command(command, 1), seconds=400, environment=environment)  # transformers imports torch_npu
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (60, 0, 60 * 20)


def test_a_stream_has_the_text_of_the_whole_answer_for_many_clients_at_once(client: openai.OpenAI) -> None:
    def streamed(number: int) -> str:
        chunks = list(complete(client, PROMPT[: 4 + number % 13], stream=True))
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(24) as pool:
        texts = list(pool.map(streamed, range(48)))
    assert texts == [continuation(PROMPT[: 4 + number % 13], 24) for number in range(48)]
    assert complete(client).choices[0].text == continuation(PROMPT, 24)


def test_several_answers_of_one_prompt(client: openai.OpenAI) -> None:
    cold = complete(client, n=3, temperature=0.1)  # vLLM refuses several greedy answers
    assert [choice.text for choice in cold.choices] == [continuation(PROMPT, 24)] * 3
    assert cold.usage.completion_tokens == 72
    sampled = complete(client, n=4, temperature=2.0, logit_bias=COIN)
    assert len({choice.text for choice in sampled.choices}) > 1, "a coin of x and y is tossed 24 times for each"
    assert {letter for choice in sampled.choices for letter in choice.text} == {"x", "y"}


def test_log_probabilities(client: openai.OpenAI) -> None:
    found = complete(client, logprobs=3, max_tokens=8).choices[0].logprobs
    assert found.tokens == list(continuation(PROMPT, 8))
    for token, chosen, best in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert len(best) == 3
        assert best[token] == chosen == max(best.values())
        assert -0.01 < chosen <= 0, "one successor stands out"


def test_a_seed_gives_the_same_answer_among_other_requests(client: openai.OpenAI) -> None:
    def sampled(seed: int) -> str:
        return str(complete(client, seed=seed, temperature=2.0, max_tokens=40, logit_bias=COIN).choices[0].text)

    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(sampled, [1, 2, 3, 4, 5, 6] * 4))
    assert len(set(texts)) == 6
    assert texts == [texts[number % 6] for number in range(24)]


def test_stop_strings(client: openai.OpenAI) -> None:
    whole = continuation(PROMPT, 24)
    choice = complete(client, stop=[whole[5:7]]).choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (whole[:5], "stop", whole[5:7])
    chunks = list(complete(client, stop=[whole[5:7]], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[:5]


def test_an_answer_follows_its_json_schema(client: openai.OpenAI) -> None:
    names = {"type": "string", "enum": ["mixtral", "qwen"]}
    schema = {
        "type": "object",
        "properties": {"model": names, "served": {"type": "boolean"}},
        "required": ["model", "served"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    messages: Any = [{"role": "user", "content": PROMPT}]

    def asked(_: int) -> Any:
        answer = client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=200, temperature=0, response_format=wanted
        )
        return json.loads(answer.choices[0].message.content or "")

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(asked, range(6)))
    for answer in answers:
        assert set(answer) == {"model", "served"}
        assert answer["model"] in names["enum"]
        assert isinstance(answer["served"], bool)


def test_clients_that_leave_take_their_requests_with_them(server: Server, client: openai.OpenAI) -> None:
    def leave(_: int) -> None:
        stream = complete(client, max_tokens=LONGEST - 64, stream=True)
        next(iter(stream))
        stream.close()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(leave, range(12)))
    deadline = time.monotonic() + 60
    while running_requests(server) != 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert running_requests(server) == 0
    assert complete(client).choices[0].text == continuation(PROMPT, 24)


def test_a_prompt_that_is_too_long_is_the_clients_error_alone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=str(LONGEST)):
        complete(client, "x" * (LONGEST + 1))
    assert complete(client, "x" * (LONGEST - 8), max_tokens=8).choices[0].text == continuation("x", 8)


ONE_API_SERVER = ("--api-server-count", "1")
"""Several, vLLM's default with data parallelism, leave their engines at once, whatever the grace."""


@pytest.mark.parametrize(
    ("grace", "more"), [(0, ()), (GRACE_SECONDS, ONE_API_SERVER)], ids=["at once, two API servers", "drains"]
)
def test_sigterm_under_load(grace: int, more: tuple[str, ...], model: str, tmp_path: Path) -> None:
    """Without grace the server ends at once; with it, what runs is answered first, and a rank that has answered all of its
    requests takes part until the others have. Nothing is left of it."""
    lengths = [LONGEST - 64 - 20 * number for number in range(6)]
    with serve(model, tmp_path, "--shutdown-timeout", str(grace), *more) as server, client_of(server) as client:
        with ThreadPoolExecutor(len(lengths)) as pool:
            answers = [pool.submit(complete, client, max_tokens=length) for length in lengths]
            deadline = time.monotonic() + 60
            while running_requests(server) != len(lengths) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert running_requests(server) == len(lengths)
            server.note_shared_memory()
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(2 * GRACE_SECONDS)
            took = time.monotonic() - start
            texts = [_text(answer) for answer in answers]
        assert code == 0, server.log_tail(80)
        assert took < GRACE_SECONDS, server.log_tail(80)
        whole = [continuation(PROMPT, length) for length in lengths]
        if grace:
            assert texts == whole, server.log_tail(80)
        else:
            assert not set(texts) & set(whole), "a request was answered whole: there was no load"
        deadline = time.monotonic() + 20
        while server.family() and time.monotonic() < deadline:
            time.sleep(0.2)  # Python's resource tracker ends after everybody else
        assert not server.leftovers()


def _text(answer: Future[Any]) -> str:
    """The text of an answer; nothing for one that broke off."""
    try:
        return str(answer.result().choices[0].text)
    except openai.APIError:
        return ""
