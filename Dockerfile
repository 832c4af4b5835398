# One image for the backend and the worker.
#   docker build -t elnet-loop .                              # CPU
#   docker build -t elnet-loop-gpu --build-arg TORCH_INDEX= . # CUDA: PyPI's own build of torch
FROM python:3.12-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

RUN apt-get update \
 && apt-get install -y --no-install-recommends npm \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/elnet
COPY requirements requirements
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" torch==2.13.0; else pip install torch==2.13.0; fi \
 && pip install setuptools wheel numpy -c requirements/constraints.txt \
 && SAM2_BUILD_CUDA=0 pip install --no-build-isolation --no-deps sam2==1.1.0

COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY active_learning active_learning
COPY backend backend
RUN pip install -c requirements/constraints.txt '.[postgresql,s3,oidc]'

RUN useradd --system --create-home --uid 10001 elnet \
 && mkdir -p /var/lib/elnet/media /var/cache/elnet \
 && chown -R elnet:elnet /var/lib/elnet /var/cache/elnet
USER elnet
VOLUME ["/var/lib/elnet", "/var/cache/elnet"]
EXPOSE 9090
CMD ["elnet", "web"]
