"""Have a running `stsl app` restore a photo: python app_client.py [OUT [URL]]."""

import json
import shutil
import sys
from pathlib import Path

from gradio_client import Client, handle_file

from stsl import images, tasks

out = Path(sys.argv[1] if len(sys.argv) > 1 else "restored")
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:7860"
client = Client(url, download_files=out / "downloads", verbose=False)
health = client.predict(api_name="/health")
print(f"{health['status']}, models {', '.join(health['models'])}")

photo = out / "small.png"  # the astronaut, made small; give a photo of yours in its place
y, _ = tasks.measure("sr4", images.astronaut_face(128), noise=0.005, ids=["astronaut"])
images.write(photo, y)

job = client.submit(handle_file(photo), "sr4", quality="fast", part="whole", api_name="/restore")
for step in job:  # job.cancel() stops it at its next step
    print(step["said"])
result = job.result()["result"]

shutil.copy(result["picture"], out / "restored.png")
(out / "run.json").write_text(json.dumps(result["settings"], indent=2), encoding="utf-8")
print("written to", out)
