# A FastAPI service with the middleware of doc/http.md: answers who is calling.
#
#   python3 fastapi_service.py DOCUMENT PORT, with PGHOST and PGPORT set

import re
import sys

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from psycopg_pool import AsyncConnectionPool

document, port = sys.argv[1:]
app = FastAPI()
pool = AsyncConnectionPool("user=verifier dbname=postgres", open=False)
app.on_event("startup")(pool.open)
with open(document, encoding="utf-8") as text:
    exec(re.search("^```python\n(.*?)^```", text.read(), re.M | re.S)[1])


@app.get("/{path:path}")
def user(path: str, request: Request):
    return {"user": request.state.user}


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
