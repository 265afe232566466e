import { client, failure, model, report, user } from './pool.mjs'

const openai = client()
const listed = []
for await (const found of openai.models.list()) listed.push(found.id)
const retrieved = await openai.models.retrieve(model)
const missing = await failure(() => openai.models.retrieve('acme/other'))

const asked = { model, messages: user('hello'), max_tokens: 2 }
const given = await openai.chat.completions
  .create(asked, { headers: { 'X-Request-ID': 'node.1' } })
  .withResponse()
const made = await openai.chat.completions.create(asked)

report({
  listed,
  retrieved,
  missing,
  given: { header: given.response.headers.get('x-request-id'), id: given.request_id, data: given.data._request_id },
  made: made._request_id,
})
