import socket, time, statistics
from ansible_collections.edgeml.fleet.plugins.module_utils._oip import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._oip_tensor import Tensor
def test_speed(endpoints):
    x=Tensor.from_values("x","FP32",[1,2],[1,2])
    out=[]
    clients={w:connect(**endpoints[w]) for w in ("http","http+unix","grpc","grpc+unix")}
    reqs={w:c.prepare("scores","",[x]) for w,c in clients.items()}
    host,port=endpoints["http"]["endpoint"][7:].split(":")
    s=socket.create_connection((host,int(port))); s.setsockopt(6,1,1)
    r=reqs["http"]
    raw=(f"POST {r.path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(r.body)}\r\n"+"".join(f"{k}: {v}\r\n" for k,v in r.headers.items())+"\r\n").encode()+r.body
    def rawsend():
        s.sendall(raw); d=s.recv(65536)
        while len(d)<need[0]: d+=s.recv(65536)
    s.sendall(raw); time.sleep(.2); need=[len(s.recv(65536))]; print(need)
    fs={w:(lambda c=c,w=w:c.send(reqs[w])) for w,c in clients.items()}; fs["raw"]=rawsend
    import http.client
    s2=socket.create_connection((host,int(port))); s2.setsockopt(6,1,1)
    def half():
        s2.sendall(raw); r=http.client.HTTPResponse(s2,method="POST"); r.begin(); d=r.read(); assert r.status==200 and len(d)>10
    fs["half"]=half
    s3=socket.create_connection((host,int(port))); s3.setsockopt(6,1,1); f3=s3.makefile("rb")
    def own():
        s3.sendall(raw)
        l=f3.readline(); h={}
        while (l:=f3.readline())!=b"\r\n":
            k,_,v=l.partition(b":"); h[k.lower()]=v.strip()
        d=f3.read(int(h[b"content-length"]))
    fs["own"]=own
    h1=http.client.HTTPConnection(host,int(port))
    def plain():
        h1.request("POST",r.path,r.body,r.headers); x=h1.getresponse(); x.read()
    fs["plain"]=plain
    t={k:[] for k in fs}
    for rep in range(20):
        for k,f in fs.items():
            for _ in range(100):
                a=time.perf_counter_ns(); f(); t[k].append(time.perf_counter_ns()-a)
    open("/tmp/checks_speed.out","w").write("\n".join(f"{k} min {min(v)/1e3:.0f} p50 {statistics.median(v)/1e3:.0f} p99 {sorted(v)[int(len(v)*.99)]/1e3:.0f}" for k,v in t.items())+"\n")
