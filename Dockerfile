# CPU:   docker build -t msl .
# CUDA:  docker build -t msl --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# Run:   docker run --rm -v "$PWD":/data -w /data msl train --help        (with --gpus all where there are some)
ARG BASE=python:3.12-slim
FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/msl
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY msldata msldata
COPY msltrain msltrain
# PyPI's torch brings its own CUDA libraries, so that one image serves both.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt '.[onnx,tensorboard]'
ENV PATH=/opt/venv/bin:$PATH GOMP_SPINCOUNT=1000
ENTRYPOINT ["msl"]
CMD ["--help"]
