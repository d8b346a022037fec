"Everything said here is read from settings.ini, which is also nbdev's configuration."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read("settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
LICENSES = {"apache2": "Apache-2.0"}
STATUSES = ["1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license=LICENSES[settings["license"]],
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    classifiers=[
        f"Development Status :: {STATUSES[int(settings['status']) - 1]}",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
    ],
    packages=find_packages(include=[settings["lib_path"], f"{settings['lib_path']}.*"]),
    package_data={settings["lib_path"]: ["weights/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={
        "dev": [
            name
            for kind in ("dev", "export", "heic", "lora")
            for name in settings[f"{kind}_requirements"].split()
        ],
        "export": settings["export_requirements"].split(),
        "heic": settings["heic_requirements"].split(),
        "lora": settings["lora_requirements"].split(),
    },
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
