import asyncio, time, statistics, httpx, sys
sys.path.insert(0,'/work/main')
from tests.support.api_process import running_process
async def test_perf(environment, tmp_path, model, tenant, epoch):
    with running_process(environment, tmp_path) as api:
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=60) as c:
            for hdr in (False, True):
                times=[]
                for i in range(400):
                    t=time.perf_counter()
                    r=await c.post("/v1/jobs", json={"prompt":"Once upon a time","max_tokens":64}, headers={"Idempotency-Key":f"k{i}"} if hdr else {})
                    times.append(time.perf_counter()-t); assert r.status_code==202
                print("idem" if hdr else "plain", "p50 %.2f ms p95 %.2f"%(statistics.median(times)*1e3, sorted(times)[380]*1e3))
        server=sorted(e["duration_ms"] for e in api.events() if e.get("route")=="/v1/jobs"); print("server p50", server[len(server)//2], server[len(server)//10])
