-- Two links at the top of every page: they open its notebook in Colab or in Binder.
-- Quarto runs this filter (_quarto.yml). tests/render_site.py passes the notebook's path as metadata.
local repository = "promptsg/promptsg"
local branch = "main"

local function notebook(meta)
  if meta.notebook then
    return pandoc.utils.stringify(meta.notebook)
  end
  return pandoc.path.make_relative(quarto.doc.input_file, quarto.project.directory)
end

function Pandoc(doc)
  if not FORMAT:match("html") then
    return nil
  end
  local path = "nbs/" .. notebook(doc.meta)
  local colab = "https://colab.research.google.com/github/" .. repository .. "/blob/" .. branch .. "/" .. path
  local binder = "https://mybinder.org/v2/gh/" .. repository .. "/" .. branch .. "?labpath=" .. path:gsub("/", "%%2F")
  local links = '<p class="run-links">Run this page: <a href="' .. colab .. '">Open in Colab</a> <a href="'
    .. binder .. '">Open in Binder</a></p>'
  table.insert(doc.blocks, 1, pandoc.RawBlock("html", links))
  return doc
end
