# The command in an image; the folder you are in is the one it works in:
#   docker build -t refed .        (--build-arg EXTRAS=[local] for the model that runs beside a run)
#   docker run --rm -it -v "$PWD:/work" --user "$(id -u)" -e HOME=/work -e OPENAI_API_KEY refed --help
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
ARG EXTRAS=
RUN python3 -m venv /tools && /tools/bin/pip install --no-cache-dir uv && python3 -m venv --without-pip /opt/refed
WORKDIR /src
COPY requirements/dev.txt requirements/
COPY pyproject.toml README.md LICENSE ./
COPY refed_dspy refed_dspy
# The locked versions, by their hashes; of the lock's packages only those that the wheel asks for.
RUN /tools/bin/uv build --wheel -o /dist \
 && /tools/bin/uv pip install --no-cache -p /opt/refed -c requirements/dev.txt "$(echo /dist/*.whl)${EXTRAS}"

FROM ${PYTHON}
ENV PATH=/opt/refed/bin:$PATH DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true HF_HUB_DISABLE_TELEMETRY=1
RUN useradd --create-home --uid 1000 refed && install -d -o refed /work
COPY --from=build /opt/refed /opt/refed
USER refed
WORKDIR /work
ENTRYPOINT ["refed"]
CMD ["--help"]
