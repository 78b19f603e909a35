# A server that speaks Amazon SQS's protocol, for work without an account. It keeps its tasks in memory.

FROM python:3.13-slim-bookworm
RUN pip install --no-cache-dir ministack==1.5.33
USER nobody
ENV HOME=/tmp SERVICES=sqs IOT_MTLS_ENABLED=0 BIND_HOST=0.0.0.0 GATEWAY_PORT=9324 LOG_LEVEL=WARNING
EXPOSE 9324
ENTRYPOINT ["ministack"]
