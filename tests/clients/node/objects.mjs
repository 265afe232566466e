// Structured output, tools and images through the npm client's own helpers.
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'

import { client, model, report } from './pool.mjs'

const image = { type: 'image_url', image_url: { url: process.env.POOL_IMAGE } }
const content = [{ type: 'text', text: 'tell me about the sea' }, ...(process.env.POOL_IMAGE ? [image] : [])]
const asked = {
  model,
  messages: [{ role: 'user', content }],
  temperature: 1,
  seed: 5,
  max_tokens: 400,
  chat_template_kwargs: { enable_thinking: false },
}
const openai = client()
const sea = z.object({
  name: z.string().max(10),
  waves: z.array(z.enum(['round', 'flat'])).max(3),
  salty: z.boolean(),
  depth: z.number().int().min(0).max(99).nullable(),
})
const format = { ...asked, response_format: zodResponseFormat(sea, 'sea') }

const parsed = await openai.chat.completions.parse(format)
const stream = openai.chat.completions.stream(format)
let snapshots = 0
stream.on('content.delta', () => (snapshots += 1))
const streamed = await stream.finalChatCompletion()

const weather = { name: 'weather', parameters: z.object({ city: z.enum(['Oslo', 'Rome']) }) }
const forced = { ...asked, tools: [zodFunction(weather)], tool_choice: 'required', parallel_tool_calls: false }
const called = await openai.chat.completions.parse(forced)
const pieces = openai.chat.completions.stream(forced)
let deltas = 0
pieces.on('tool_calls.function.arguments.delta', () => (deltas += 1))
const calling = await pieces.finalChatCompletion()

// The runner calls the function itself and sends its result back; the second answer ends the conversation.
const cities = []
const runner = openai.chat.completions.runTools(
  {
    ...asked,
    max_tokens: 60,
    tool_choice: { type: 'function', function: { name: 'weather' } },
    tools: [zodFunction({ ...weather, function: ({ city }) => (cities.push(city), 'sunny') })],
  },
  { maxChatCompletions: 2 },
)
await runner.done()

report({
  parsed: parsed.choices[0].message.parsed,
  streamed: streamed.choices[0].message.parsed,
  snapshots,
  called: called.choices[0].message.tool_calls.map((call) => call.function.parsed_arguments),
  calling: calling.choices[0].message.tool_calls.map((call) => call.function.parsed_arguments),
  deltas,
  cities,
  roles: runner.messages.map((message) => message.role),
})
