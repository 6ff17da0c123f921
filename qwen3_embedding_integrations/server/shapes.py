"""What requests and answers look like, for checking the one and documenting both."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

QUERY_WORDS = ("query", "search_query")

InputType = Literal["query", "document", "search_query", "search_document", "passage"]
Truncate = Literal["NONE", "END"] | bool
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Request(BaseModel):
    """A JSON body: no field more than these, no value of another type (OpenAI refuses both)."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EmbeddingRequest(Request):
    """OpenAI's embeddings request, and what a query is for."""

    model: str
    input: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="A text, texts, the token ids of one, or of several."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 holds little-endian float32."
    )
    dimensions: int | None = Field(None, ge=1, description="Cut, then a unit vector again.")
    user: str | None = Field(None, description="Taken as OpenAI does, and not looked at.")
    input_type: InputType | None = Field(
        None,
        description="A query is read behind its instruction. Without this, texts are read as "
        "they are: as documents.",
    )
    instruction: str | None = Field(None, description="What queries are for; with a query only.")
    truncate: Truncate | None = Field(
        None,
        description="NONE or false refuses a text that is too long, END or true cuts its end; "
        "without this, as the server was started.",
    )


class Document(Request):
    """A document as Cohere's and Jina's clients may send it."""

    text: str


class RerankRequest(Request):
    """Cohere's and Jina's rerank request."""

    model: str
    query: str
    documents: list[str | Document]
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = False
    instruction: str | None = Field(None, description="What makes a document right.")
    truncate: Truncate | None = None


class Embedding(BaseModel):
    """One vector, as numbers or as base64 of its bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """One vector for each text, in the order given."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Ranked(BaseModel):
    """A document's place in the request, and its score."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class RerankAnswer(BaseModel):
    """The documents, best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: Usage
    meta: dict[str, Any]


class Problem(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's shape of an error."""

    error: Problem
