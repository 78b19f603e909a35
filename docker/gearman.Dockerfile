# gearmand as Debian packages it; there is no official image.

FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends gearman-job-server gearman-tools \
    && rm -rf /var/lib/apt/lists/* && install --directory --owner nobody /data
USER nobody
VOLUME /data
EXPOSE 4730
ENTRYPOINT ["gearmand", "--config-file=/dev/null", "--log-file=stderr", "--pid-file=/data/pid"]
# Each job is written to the disk before it is accepted.
CMD ["--queue-type=libsqlite3", "--libsqlite3-db=/data/queue.sqlite"]
