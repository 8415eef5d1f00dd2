# otel-audit itself: the sink, the sealer, and the commands. Build it in the repository's root:
#
#   docker build -f collector-config/sink.Dockerfile -t otel-audit .
FROM python:3.13-slim
COPY . /src
RUN pip install --no-cache-dir '/src[cli,encryption,postgres,server]' \
    && rm -r /src \
    && useradd --uid 10002 --no-create-home otel-audit
USER 10002
ENTRYPOINT ["otel-audit"]
