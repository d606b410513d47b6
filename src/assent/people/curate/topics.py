"""What prompts are about: clusters of what a model, or the words, say of them, each with words for a name."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assent.config.curate import TopicsConfig
from assent.errors import ConfigError
from assent.measures.texts import UNSPACED
from assent.people.curate.texts import extra, plain_words

log = logging.getLogger(__name__)

DIMENSIONS = 100
"""What TF-IDF is reduced to."""
VOCABULARY = 50_000
MOST_TOPICS, PROMPTS_OF_ONE = 1_000, 10
"""By default one topic for so many prompts, and not more than so many topics."""
COMMON, MANY = 0.1, 100
"""Words of more than this share of the prompts, and of more than a topic has on average, tell no topics apart where
there are so many prompts."""
READ = 4_000
"""Characters of a prompt whose words count."""
BATCH = 4096
"""Texts that k-means looks at in one step; of no more than these it looks at all in each."""
FEWEST = 5
"""Texts that BERTopic can tell apart; fewer are one topic."""
NAMED = 3
"""Words of a topic's name."""
_LETTER = re.compile(f"[{UNSPACED}]")


@dataclass(frozen=True)
class Topics:
    """`labels` [N] are numbers of topics, which have `names`. `how` says what they were made of."""

    labels: np.ndarray
    names: tuple[str, ...]
    how: str

    def of_rows(self) -> list[str]:
        return [self.names[label] for label in self.labels.tolist()]


def check_topics(config: TopicsConfig) -> None:
    """Raises ConfigError, before any work, where packages are missing and options do not fit."""
    if config.method == "bertopic":
        extra("bertopic", "--topics.method bertopic")
    elif config.method == "kmeans":
        extra("sklearn", "--topics.method kmeans")
    elif config.model is not None or config.number is not None:
        raise ConfigError("--topics.method none makes no topics: leave --topics.model and --topics.number out.")


def topics_of(texts: Sequence[str], config: TopicsConfig, seed: int, **opening: Any) -> Topics:
    """The topics of texts; `opening` is what `Embedder` needs of a command. Says where there are fewer than asked."""
    if config.method == "none":
        return Topics(np.zeros(len(texts), int), ("all",), "none")
    asked = config.number or min(MOST_TOPICS, max(1, len(texts) // PROMPTS_OF_ONE))
    words = [[word for word in plain_words(text[:READ]) if _tells(word)] for text in texts]
    table, vocabulary = _counts(words, max(COMMON, 1 / asked))
    if config.model is None:
        vectors, of = _reduced(table, seed), "TF-IDF"
    else:
        from assent.people.curate.embed import Embedder

        vectors, of = Embedder(config.model, flag="--topics.model", **opening).vectors(texts), config.model
    number = min(asked, len(np.unique(np.round(vectors, 6), axis=0)))
    if number < 2:
        labels = np.zeros(len(texts), int)
    elif config.method == "bertopic":
        labels = _bertopic(texts, vectors, number, seed)
    else:
        labels = _kmeans(vectors, number, seed)
    found, labels = np.unique(labels, return_inverse=True)
    if config.number is not None and len(found) < config.number:
        log.warning(f"--topics.number {config.number}: {len(found)} topics were found")
    return Topics(labels, _names(labels, table, vocabulary), f"{config.method} of {of}")


def _tells(word: str) -> bool:
    """Whether a word may tell one topic from another: no number, and more than a letter, or a letter of a script that
    writes no blanks."""
    return not word.isdigit() and (len(word) > 1 or _LETTER.match(word) is not None)


def _counts(words: Sequence[Sequence[str]], share: float) -> tuple[Any, list[str]]:
    """How often each of the most frequent words is in each text, [N, V], and the words, of which each is in two texts
    or more and in no more than a `share` of them, where there are such."""
    texts_with = Counter(word for each in words for word in set(each))
    common = len(words) * share if len(words) >= MANY else len(words)
    stop = extra("sklearn.feature_extraction.text", "topics").ENGLISH_STOP_WORDS
    telling = [(word, count) for word, count in texts_with.most_common() if count <= common and word not in stop]
    often = [word for word, count in telling if count > 1] or [word for word, _ in telling] or list(texts_with)
    vocabulary = sorted(often[:VOCABULARY]) or [""]
    known = set(vocabulary)
    vectorizer = extra("sklearn.feature_extraction.text", "topics").CountVectorizer(
        analyzer=lambda each: [word for word in each if word in known], vocabulary=vocabulary, dtype=np.float32
    )
    return vectorizer.transform(words), vocabulary


def _reduced(table: Any, seed: int) -> np.ndarray:
    """[N, at most DIMENSIONS], of length one."""
    tfidf = extra("sklearn.feature_extraction.text", "topics").TfidfTransformer(sublinear_tf=True)
    weighted = tfidf.fit_transform(table)
    size = min(DIMENSIONS, min(weighted.shape) - 1)
    if size < 2:
        dense = weighted.toarray()
    else:
        svd = extra("sklearn.decomposition", "topics").TruncatedSVD(size, random_state=_seed(seed))
        with np.errstate(invalid="ignore"):  # the share of variance, of texts that are all the same
            dense = svd.fit_transform(weighted)
    lengths = np.linalg.norm(dense, axis=1, keepdims=True)
    return np.asarray(dense / np.maximum(lengths, 1e-12), np.float32)


def _kmeans(vectors: np.ndarray, number: int, seed: int) -> np.ndarray:
    cluster = extra("sklearn.cluster", "topics")
    if len(vectors) <= BATCH:
        made = cluster.KMeans(number, random_state=_seed(seed), n_init=3)
    else:
        made = cluster.MiniBatchKMeans(number, random_state=_seed(seed), batch_size=BATCH, n_init=3, max_iter=50)
    return np.asarray(made.fit_predict(vectors))


def _bertopic(texts: Sequence[str], vectors: np.ndarray, number: int, seed: int) -> np.ndarray:
    """BERTopic's topics, of which there are at most `number`; outliers go to the topic whose mean vector is nearest."""
    what, count = "--topics.method bertopic", len(texts)
    if count < FEWEST:
        return np.zeros(count, int)
    umap = extra("umap", what).UMAP(
        n_neighbors=min(15, count - 1),
        n_components=min(5, count - 2),
        min_dist=0.0,
        metric="cosine",
        init="spectral" if count > 30 else "random",  # which eigenvectors of so small a matrix do not allow
        random_state=_seed(seed),
    )
    least = max(2, min(10, count // (2 * number)))
    counter = extra("sklearn.feature_extraction.text", what).CountVectorizer(analyzer=str.split)
    model = extra("bertopic", what).BERTopic(
        "multilingual", min_topic_size=least, umap_model=umap, vectorizer_model=counter
    )
    labels = np.asarray(model.fit_transform(list(texts), embeddings=vectors)[0])
    outside = labels < 0
    if outside.all():
        return np.zeros(count, int)
    if len(np.unique(labels[~outside])) > number:
        model.reduce_topics(list(texts), nr_topics=number + int(outside.any()))
        labels = np.asarray(model.topics_)
    found, places = np.unique(labels[~outside], return_inverse=True)
    means = np.stack([vectors[~outside][places == place].mean(0) for place in range(len(found))])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    if outside.any():
        log.info(f"topics: {int(outside.sum()):,} outliers go to the nearest topic")
        labels[outside] = found[np.argmax(vectors[outside] @ means.T, axis=1)]
    return labels


def _seed(seed: int) -> int:
    """A seed as scikit-learn takes it."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _names(labels: np.ndarray, table: Any, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """For each topic its number and the words that tell it apart: by tf * log(1 + A / f), of words in the topic and in
    all, A the words of a topic on average (BERTopic's class-based TF-IDF, arXiv 2203.05794)."""
    sparse = extra("scipy.sparse", "topics")
    count = int(labels.max()) + 1 if len(labels) else 0
    member = sparse.csr_matrix((np.ones(len(labels), np.float32), (labels, np.arange(len(labels)))))
    classes = (member @ table).tocsr()
    totals = np.asarray(classes.sum(0)).ravel()
    idf = np.log1p(totals.sum() / max(count, 1) / np.maximum(totals, 1e-9))
    width = len(str(max(count - 1, 0)))
    names = []
    for topic in range(count):
        row = classes.getrow(topic)
        scores = row.data * idf[row.indices]
        best = row.indices[np.lexsort((row.indices, -scores))[:NAMED]]
        names.append(" ".join([f"{topic:0{width}d}", *(vocabulary[index] for index in best)]).strip())
    return tuple(names)
