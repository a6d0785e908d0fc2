# zsad on a CPU: docker build -t zsadbench . && docker run --rm -v "$PWD:/data" zsadbench run --method clip --dataset demo
# Untried: no builder was at hand where it was written. torch's CPU build keeps the image small; for a GPU leave that line out.
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    ZSAD_CACHE=/cache

RUN useradd --create-home --uid 1000 zsad \
    && mkdir /cache /data \
    && chown zsad:zsad /cache /data

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY zsadbench zsadbench
COPY methods methods
COPY datasets datasets
COPY results/published.csv results/published.csv
# The newest versions that pyproject.toml allows are wanted, so nothing is pinned here.
# hadolint ignore=DL3013
RUN pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install ".[report]" \
    && rm -rf /src

USER 1000
WORKDIR /data
ENTRYPOINT ["zsad"]
CMD ["--help"]
