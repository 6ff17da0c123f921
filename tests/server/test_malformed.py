"""Bodies that are no requests: each a 4xx in OpenAI's shape, whatever is wrong with it."""

from __future__ import annotations

import random
from collections import Counter

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.bodies import malformed_bodies
from tests.server.serving import Running

POSITIVE = [schemathesis.GenerationMode.POSITIVE]
NUM_BODIES = 400  # `python -m benchmarks.fuzz` sends 5,000


def test_malformed_bodies_are_refused(server: Running) -> None:
    """Hundreds of damaged bodies are refused, each by a 4xx; a sound one is answered after them."""
    expected = server.vectors(["still here"])
    for body in malformed_bodies(random.Random(6), NUM_BODIES):
        answer = server.post(body.path, body.content)
        assert 400 <= answer.status < 500, (answer.status, answer.body, body.content[:300])
        assert set(answer.body["error"]) == {"message", "type", "param", "code"}
    assert (server.vectors(["still here"]) == expected).all()


def test_schemathesis(server: Running) -> None:
    """Requests made from the OpenAPI document get no 5xx and nothing the document lacks."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    profile = settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    checks = [not_a_server_error, response_schema_conformance, status_code_conformance]
    statuses: Counter[tuple[str, int]] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        # Where there is no body, a wrong request cannot be made.
        for mode in schemathesis.GenerationMode if operation.body else POSITIVE:

            @profile
            @given(case=operation.as_strategy(mode))
            def test(case: schemathesis.Case) -> None:
                response = case.call_and_validate(checks=checks, timeout=60)
                statuses[case.operation.path, response.status_code] += 1

            test()
    assert sum(statuses.values()) > 150
    for path in ("/v1/embeddings", "/v1/rerank"):
        assert statuses[path, 200], f"no request to {path} was right"
        assert statuses[path, 400], f"no request to {path} was wrong"
