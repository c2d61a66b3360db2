-- More deliveries, each with an id of its own, than either server remembers:
-- so that none is a repeat, and both do all of the work for each.
local requests, next = {}, 0

function init()
  local body = os.getenv("BODY")
  wrk.method = "POST"
  wrk.body = body
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["X-GitHub-Event"] = "workflow_job"
  wrk.headers["X-Hub-Signature-256"] = os.getenv("SIGNATURE")
  for i = 1, 20000 do
    wrk.headers["X-GitHub-Delivery"] = string.format("72d3162e-cc78-11e3-81ab-%012d", i)
    requests[i] = wrk.format("POST", "/webhook")
  end
end

function request()
  next = next % 20000 + 1
  return requests[next]
end
