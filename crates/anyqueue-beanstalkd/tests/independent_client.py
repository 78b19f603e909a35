"""A producer and a worker that know nothing of anyqueue, on a client that is not ours.

    independent_client.py ADDRESS put TUBE BODY...       puts jobs
    independent_client.py ADDRESS take TUBE COUNT        reserves and deletes jobs, prints a JSON line for each
"""

import json
import sys

import greenstalk


def main(address, verb, tube, *rest):
    host, port = address.rsplit(":", 1)
    with greenstalk.Client((host, int(port)), use=tube, watch=tube) as client:
        if verb == "put":
            for body in rest:
                print(client.put(body, priority=1024, delay=0, ttr=60))
        elif verb == "take":
            for _ in range(int(rest[0])):
                job = client.reserve(timeout=10)
                facts = client.stats_job(job)
                print(json.dumps({"body": json.loads(job.body), "priority": facts["pri"], "ttr": facts["ttr"]}))
                client.delete(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
