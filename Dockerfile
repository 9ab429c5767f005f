# This image was never built: no Docker daemon ran where it was written.
#
#   docker build -t preftune .
#   docker run --rm preftune --help
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" preftune \
#     sample --prompts prompts.jsonl --model_name_or_path /work/my-model
#
# The page for labeling:
#   docker run --rm -p 8000:8000 -v "$PWD:/work" --user "$(id -u):$(id -g)" preftune \
#     label --serve --host 0.0.0.0 --public_host localhost:8000 --samples samples.jsonl --invite ann
#
# The machine needs an NVIDIA driver and the NVIDIA container toolkit. torch's wheels bring CUDA's
# libraries, so the base image has none.
FROM python:3.12-slim

# Any --user can work: what is downloaded from the Hub goes to /cache (mount it to keep it), and
# torch, which asks for a user's name, finds one.
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/work \
    USER=preftune \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib

# First what the toolkit needs, which is large and seldom changes; then the toolkit itself.
WORKDIR /source
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; \
      project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      print(*project['dependencies'], *project['optional-dependencies']['label'], sep='\\n')" \
      > needed.txt \
    && pip install -r needed.txt -c constraints.txt
COPY . .
RUN pip install --no-deps .

RUN useradd --home-dir /work --no-create-home preftune \
    && mkdir -p /work /cache \
    && chown preftune /work \
    && chmod 1777 /cache
USER preftune
WORKDIR /work
ENTRYPOINT ["preftune"]
CMD ["--help"]
