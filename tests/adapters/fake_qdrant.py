"""A Qdrant server in this process, spoken to by the real client over real gRPC.

There is no Qdrant server on PyPI. This one keeps a collection's parameters and metadata as they
were sent and its points in the order of arrival, and searches nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import numpy as np
from qdrant_client import QdrantClient
from qdrant_client import grpc as messages
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc


class Fault(NamedTuple):
    """How an upsert fails."""

    code: grpc.StatusCode
    retry_after_s: int | None = None  # what a server at its limits says


class FakeQdrant(
    collections_service_pb2_grpc.CollectionsServicer, points_service_pb2_grpc.PointsServicer
):
    """The answers; `before_answer` runs in each upsert once its points are in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._collections: dict[str, Any] = {}
        self.points: list[Any] = []
        self.request_sizes: list[int] = []
        self.waits: list[bool] = []
        self.before_answer: Callable[[], None] = lambda: None
        self.faults: list[Fault] = []  # of the next upserts, which do not arrive

    @property
    def vectors(self) -> np.ndarray:
        """Every vector received, (N, W) float32, the very bits that were sent."""
        return np.array(
            [np.asarray(point.vectors.vector.dense.data, np.float32) for point in self.points]
        )

    @property
    def ids(self) -> list[int | str]:
        return [point.id.uuid or point.id.num for point in self.points]

    # The methods' names are gRPC's contract.

    def List(self, request: Any, context: Any) -> Any:
        names = [messages.CollectionDescription(name=name) for name in self._collections]
        return messages.ListCollectionsResponse(collections=names)

    def CollectionExists(self, request: Any, context: Any) -> Any:
        exists = request.collection_name in self._collections
        return messages.CollectionExistsResponse(result=messages.CollectionExists(exists=exists))

    def ListAliases(self, request: Any, context: Any) -> Any:
        return messages.ListAliasesResponse()

    def Create(self, request: Any, context: Any) -> Any:
        self._collections[request.collection_name] = request
        return messages.CollectionOperationResponse(result=True)

    def Get(self, request: Any, context: Any) -> Any:
        made = self._collections[request.collection_name]
        config = messages.CollectionConfig(
            params=messages.CollectionParams(vectors_config=made.vectors_config),
            metadata=made.metadata,
            # What the client demands of a server: its own defaults.
            hnsw_config=messages.HnswConfigDiff(m=16, ef_construct=100, full_scan_threshold=10000),
            optimizer_config=messages.OptimizersConfigDiff(
                deleted_threshold=0.2,
                vacuum_min_vector_number=1000,
                default_segment_number=0,
                flush_interval_sec=5,
            ),
            wal_config=messages.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
            quantization_config=made.quantization_config
            if made.HasField("quantization_config")
            else None,
        )
        info = messages.CollectionInfo(
            status=messages.CollectionStatus.Green,
            optimizer_status=messages.OptimizerStatus(ok=True),
            config=config,
        )
        return messages.GetCollectionInfoResponse(result=info)

    def Count(self, request: Any, context: Any) -> Any:
        count = messages.CountResult(count=len(set(self.ids)))
        return messages.CountResponse(result=count, time=0.0)

    def Upsert(self, request: Any, context: Any) -> Any:
        with self._lock:
            fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            if fault.retry_after_s:
                context.set_trailing_metadata([("retry-after", str(fault.retry_after_s))])
            context.abort(fault.code, "as the test wants it")
        with self._lock:
            self.points += request.points
            self.request_sizes.append(len(request.points))
            self.waits.append(request.wait)
        self.before_answer()
        return messages.PointsOperationResponse(result=messages.UpdateResult(status=2), time=0.0)


@contextmanager
def fake_qdrant() -> Iterator[tuple[QdrantClient, FakeQdrant]]:
    """Yield a real client that speaks gRPC to a fresh fake server."""
    fake = FakeQdrant()
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    collections_service_pb2_grpc.add_CollectionsServicer_to_server(fake, server)
    points_service_pb2_grpc.add_PointsServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = QdrantClient(
        host="127.0.0.1",
        grpc_port=port,
        prefer_grpc=True,
        check_compatibility=False,
        timeout=120,  # an upload may wait for what a test has it wait for
    )
    try:
        yield client, fake
    finally:
        client.close()
        server.stop(None).wait()
