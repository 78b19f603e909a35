# beanstalkd as Debian packages it; there is no official image.

FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends beanstalkd netcat-openbsd \
    && rm -rf /var/lib/apt/lists/* && install --directory --owner nobody /data
USER nobody
VOLUME /data
EXPOSE 11300
ENTRYPOINT ["beanstalkd"]
# Each write waits for the disk; tasks may have a megabyte.
CMD ["-b", "/data", "-f", "0", "-z", "1048576"]
